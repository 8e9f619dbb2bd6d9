/* CRU's fuse behind two batch norms, channels last: Z = beta1 * BN(Y1) + beta2 * BN(Y2), Y2 = cat(made, low). Batch norm,
 * softmax and their backward need only sums over positions of the maps, and then map them by
 * Z = p * Y1 + q * Y2 + r, per sample and channel. mmscconv/ops/norm_fuse.py has the arithmetic in between. */
#include "kernels.h"
#include "rows.h"

/* Some rows of each map as floats, grad's if there is one. */
typedef struct {
    const float *grad, *y1, *made, *low;
} Chunk;

/* scratch: 3 * rows * channels floats for bfloat16 maps. */
static Chunk read_chunk(const Map *grad, const Map *y1, const Map *made, const Map *low, int bf16, int64_t at, int64_t rows,
                        int64_t channels, int64_t low_channels, float *scratch) {
    int64_t m = channels - low_channels;
    float *of_made = bf16 ? scratch + rows * channels : NULL, *of_low = bf16 ? of_made + rows * m : NULL;
    float *of_grad = bf16 ? scratch + 2 * rows * channels : NULL;
    return (Chunk){grad ? values_at(grad, bf16, at * channels, rows * channels, of_grad) : NULL,
                   values_at(y1, bf16, at * channels, rows * channels, scratch),
                   values_at(made, bf16, at * m, rows * m, of_made),
                   values_at(low, bf16, at * low_channels, rows * low_channels, of_low)};
}

/* Without grad: the sums of Y1, Y1^2, Y2 and Y2^2; with it: of grad, grad * Y1 and grad * Y2; sums: (N, 4 or 3, C).
 * grad and y1: (N, H*W, C); made: (N, H*W, C - low_channels); low: (N, H*W, low_channels). Returns 0, or 1 without
 * memory. */
int norm_fuse_sums(const Map *grad, const Map *y1, const Map *made, const Map *low, int64_t samples, int64_t channels,
                   int64_t positions, int64_t low_channels, int bf16, int threads, double *sums) {
    Shape s = {samples, channels, positions, 1};
    int64_t chunks = chunk_count(s), step = chunk_positions(s), m = channels - low_channels, kinds = grad ? 3 : 4;
    int64_t room = 3 * step * channels;
    double *parts = malloc(samples * chunks * kinds * channels * sizeof(double));
    float *scratch = bf16 ? malloc(threads * room * sizeof(float)) : NULL;
    if (!parts || (bf16 && !scratch)) {
        free(parts);
        free(scratch);
        return 1;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples * chunks; i++) {
        int64_t n = i / chunks, first = i % chunks * step, last = min_of(first + step, positions);
        double *part = parts + i * kinds * channels;
        memset(part, 0, kinds * channels * sizeof(double));
        int64_t at = n * positions + first, rows = last - first;
        Chunk in = read_chunk(grad, y1, made, low, bf16, at, rows, channels, low_channels, own_part_of(scratch, room));
        const float *y1_rows = in.y1, *made_rows = in.made, *low_rows = in.low;
        double *of_y2 = part + 2 * channels;
        if (grad) {
            const float *grad_rows = in.grad;
            sums_of_rows(grad_rows, channels, y1_rows, channels, rows, channels, part, part + channels);
            products_of_rows(grad_rows, channels, made_rows, m, rows, m, of_y2);
            products_of_rows(grad_rows + m, channels, low_rows, low_channels, rows, low_channels, of_y2 + m);
        } else {
            sums_of_rows(y1_rows, channels, y1_rows, channels, rows, channels, part, part + channels);
            sums_of_rows(made_rows, m, made_rows, m, rows, m, of_y2, of_y2 + channels);
            sums_of_rows(low_rows, low_channels, low_rows, low_channels, rows, low_channels, of_y2 + m,
                         of_y2 + channels + m);
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < samples; n++)
        for (int64_t j = 0; j < kinds * channels; j++) {
            double total = 0;
            for (int64_t chunk = 0; chunk < chunks; chunk++) total += parts[(n * chunks + chunk) * kinds * channels + j];
            sums[n * kinds * channels + j] = total;
        }
    free(parts);
    free(scratch);
    return 0;
}

/* out = p * Y1 + q * Y2 + r; factors: (N, 3, C), p, q and r. Otherwise as above. */
int norm_fuse_forward(const Map *y1, const Map *made, const Map *low, const float *factors, int64_t samples,
                      int64_t channels, int64_t positions, int64_t low_channels, int bf16, int threads, Map *out) {
    Shape s = {samples, channels, positions, 1};
    int64_t chunks = chunk_count(s), step = chunk_positions(s), m = channels - low_channels, room = 3 * step * channels;
    float *scratch = bf16 ? malloc(threads * room * sizeof(float)) : NULL;
    if (bf16 && !scratch) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples * chunks; i++) {
        int64_t n = i / chunks, first = i % chunks * step, rows = min_of(step, positions - first);
        int64_t at = n * positions + first;
        float *own = own_part_of(scratch, room);
        Chunk in = read_chunk(NULL, y1, made, low, bf16, at, rows, channels, low_channels, own);
        const float *p = factors + n * 3 * channels, *q = p + channels, *r = q + channels;
        float *to = place_at(out, bf16, at * channels, own); /* over Y1, value by value */
        combine_rows(in.y1, channels, in.made, m, p, q, r, rows, m, to, channels);
        combine_rows(in.y1 + m, channels, in.low, low_channels, p + m, q + m, r + m, rows, low_channels, to + m, channels);
        put(out, bf16, at * channels, rows * channels, to);
    }
    free(scratch);
    return 0;
}

/* The gradients a * grad + b * Y + c of Y1 and Y2; factors: (N, 6, C), a, b and c of Y1, then of Y2. */
int norm_fuse_backward(const Map *grad, const Map *y1, const Map *made, const Map *low, const float *factors,
                       int64_t samples, int64_t channels, int64_t positions, int64_t low_channels, int bf16, int threads,
                       Map *grad_y1, Map *grad_made, Map *grad_low) {
    Shape s = {samples, channels, positions, 1};
    int64_t chunks = chunk_count(s), step = chunk_positions(s), m = channels - low_channels, room = 3 * step * channels;
    float *scratch = bf16 ? malloc(threads * room * sizeof(float)) : NULL;
    if (bf16 && !scratch) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples * chunks; i++) {
        int64_t n = i / chunks, first = i % chunks * step, rows = min_of(step, positions - first);
        int64_t at = n * positions + first;
        Chunk in = read_chunk(grad, y1, made, low, bf16, at, rows, channels, low_channels, own_part_of(scratch, room));
        const float *a = factors + n * 6 * channels, *b = a + channels, *c = b + channels;
        /* Each gradient is written over the map that it is of, value by value. */
        float *to = place_at(grad_y1, bf16, at * channels, (float *)in.y1);
        combine_rows(in.grad, channels, in.y1, channels, a, b, c, rows, channels, to, channels);
        put(grad_y1, bf16, at * channels, rows * channels, to);
        a += 3 * channels, b += 3 * channels, c += 3 * channels;
        to = place_at(grad_made, bf16, at * m, (float *)in.made);
        combine_rows(in.grad, channels, in.made, m, a, b, c, rows, m, to, m);
        put(grad_made, bf16, at * m, rows * m, to);
        to = place_at(grad_low, bf16, at * low_channels, (float *)in.low);
        combine_rows(in.grad + m, channels, in.low, low_channels, a + m, b + m, c + m, rows, low_channels, to, low_channels);
        put(grad_low, bf16, at * low_channels, rows * low_channels, to);
    }
    free(scratch);
    return 0;
}
