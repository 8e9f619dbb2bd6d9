/* CRU's fuse behind two batch norms, channels last: Z = beta1 * BN(Y1) + beta2 * BN(Y2), Y2 = cat(made, low). Batch norm,
 * softmax and their backward need only sums over positions of the maps, and then map them by
 * Z = p * Y1 + q * Y2 + r, per sample and channel. mmscconv/ops/norm_fuse.py has the arithmetic in between. */
#include "kernels.h"
#include "rows.h"

/* Without grad: the sums of Y1, Y1^2, Y2 and Y2^2; with it: of grad, grad * Y1 and grad * Y2; sums: (N, 4 or 3, C).
 * grad and y1: (N, H*W, C); made: (N, H*W, C - low_channels); low: (N, H*W, low_channels). Returns 0, or 1 without
 * memory. */
int norm_fuse_sums(const float *grad, const float *y1, const float *made, const float *low, int64_t samples,
                   int64_t channels, int64_t positions, int64_t low_channels, int threads, double *sums) {
    Shape s = {samples, channels, positions, 1};
    int64_t chunks = chunk_count(s), step = chunk_positions(s), m = channels - low_channels, kinds = grad ? 3 : 4;
    double *parts = malloc(samples * chunks * kinds * channels * sizeof(double));
    if (!parts) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples * chunks; i++) {
        int64_t n = i / chunks, first = i % chunks * step, last = min_of(first + step, positions);
        double *part = parts + i * kinds * channels;
        memset(part, 0, kinds * channels * sizeof(double));
        int64_t at = n * positions + first, rows = last - first;
        const float *y1_rows = y1 + at * channels, *made_rows = made + at * m, *low_rows = low + at * low_channels;
        double *of_y2 = part + 2 * channels;
        if (grad) {
            const float *grad_rows = grad + at * channels;
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
    return 0;
}

/* out = p * Y1 + q * Y2 + r; factors: (N, 3, C), p, q and r. Otherwise as above. */
int norm_fuse_forward(const float *y1, const float *made, const float *low, const float *factors, int64_t samples,
                      int64_t channels, int64_t positions, int64_t low_channels, int threads, float *out) {
    Shape s = {samples, channels, positions, 1};
    int64_t chunks = chunk_count(s), step = chunk_positions(s), m = channels - low_channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples * chunks; i++) {
        int64_t n = i / chunks, first = i % chunks * step, rows = min_of(step, positions - first);
        int64_t at = n * positions + first;
        const float *p = factors + n * 3 * channels, *q = p + channels, *r = q + channels, *y1_rows = y1 + at * channels;
        float *to = out + at * channels;
        combine_rows(y1_rows, channels, made + at * m, m, p, q, r, rows, m, to, channels);
        combine_rows(y1_rows + m, channels, low + at * low_channels, low_channels, p + m, q + m, r + m, rows, low_channels,
                     to + m, channels);
    }
    return 0;
}

/* The gradients a * grad + b * Y + c of Y1 and Y2; factors: (N, 6, C), a, b and c of Y1, then of Y2. */
int norm_fuse_backward(const float *grad, const float *y1, const float *made, const float *low, const float *factors,
                       int64_t samples, int64_t channels, int64_t positions, int64_t low_channels, int threads,
                       float *grad_y1, float *grad_made, float *grad_low) {
    Shape s = {samples, channels, positions, 1};
    int64_t chunks = chunk_count(s), step = chunk_positions(s), m = channels - low_channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples * chunks; i++) {
        int64_t n = i / chunks, first = i % chunks * step, rows = min_of(step, positions - first);
        int64_t at = n * positions + first;
        const float *a = factors + n * 6 * channels, *b = a + channels, *c = b + channels;
        const float *grad_rows = grad + at * channels;
        combine_rows(grad_rows, channels, y1 + at * channels, channels, a, b, c, rows, channels, grad_y1 + at * channels,
                     channels);
        a += 3 * channels, b += 3 * channels, c += 3 * channels;
        combine_rows(grad_rows, channels, made + at * m, m, a, b, c, rows, m, grad_made + at * m, m);
        combine_rows(grad_rows + m, channels, low + at * low_channels, low_channels, a + m, b + m, c + m, rows,
                     low_channels, grad_low + at * low_channels, low_channels);
    }
    return 0;
}
