/* CRU's fuse behind two batch norms, channels last: Z = beta1 * BN(Y1) + beta2 * BN(Y2), Y2 = cat(made, low). Batch norm,
 * softmax and their backward need only sums over positions of the maps, and then map them by
 * Z = p * Y1 + q * Y2 + r, per sample and channel. mmscconv/ops/norm_fuse.py has the arithmetic in between. */
#include "common.h"
#include "kernels.h"

static void sum_row(const float *y, int64_t channels, double *sum, double *square) {
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
        double v = y[c];
        sum[c] += v;
        square[c] += v * v;
    }
}

static void product_row(const float *grad, const float *y, int64_t channels, double *product) {
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) product[c] += (double)grad[c] * y[c];
}

static void grad_row(const float *grad, const float *y, int64_t channels, double *sum, double *product) {
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
        double v = grad[c];
        sum[c] += v;
        product[c] += v * y[c];
    }
}

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
        for (int64_t at = n * positions + first; at < n * positions + last; at++) {
            const float *made_row = made + at * m, *low_row = low + at * low_channels;
            double *of_y2 = part + 2 * channels;
            if (grad) {
                const float *row = grad + at * channels;
                grad_row(row, y1 + at * channels, channels, part, part + channels);
                product_row(row, made_row, m, of_y2);
                product_row(row + m, low_row, low_channels, of_y2 + m);
            } else {
                sum_row(y1 + at * channels, channels, part, part + channels);
                sum_row(made_row, m, of_y2, of_y2 + channels);
                sum_row(low_row, low_channels, of_y2 + m, of_y2 + channels + m);
            }
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

/* to = a * x + b * y + c. */
static void combine_row(const float *restrict x, const float *restrict y, const float *a, const float *b, const float *c,
                        int64_t channels, float *restrict to) {
#pragma omp simd
    for (int64_t i = 0; i < channels; i++) to[i] = a[i] * x[i] + (b[i] * y[i] + c[i]);
}

/* out = p * Y1 + q * Y2 + r; factors: (N, 3, C), p, q and r. Otherwise as above. */
int norm_fuse_forward(const float *y1, const float *made, const float *low, const float *factors, int64_t samples,
                      int64_t channels, int64_t positions, int64_t low_channels, int threads, float *out) {
    int64_t m = channels - low_channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t at = 0; at < samples * positions; at++) {
        const float *p = factors + at / positions * 3 * channels, *q = p + channels, *r = q + channels;
        combine_row(y1 + at * channels, made + at * m, p, q, r, m, out + at * channels);
        combine_row(y1 + at * channels + m, low + at * low_channels, p + m, q + m, r + m, low_channels,
                    out + at * channels + m);
    }
    return 0;
}

/* The gradients a * grad + b * Y + c of Y1 and Y2; factors: (N, 6, C), a, b and c of Y1, then of Y2. */
int norm_fuse_backward(const float *grad, const float *y1, const float *made, const float *low, const float *factors,
                       int64_t samples, int64_t channels, int64_t positions, int64_t low_channels, int threads,
                       float *grad_y1, float *grad_made, float *grad_low) {
    int64_t m = channels - low_channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t at = 0; at < samples * positions; at++) {
        const float *a = factors + at / positions * 6 * channels, *b = a + channels, *c = b + channels;
        const float *row = grad + at * channels;
        combine_row(row, y1 + at * channels, a, b, c, channels, grad_y1 + at * channels);
        a += 3 * channels, b += 3 * channels, c += 3 * channels;
        combine_row(row, made + at * m, a, b, c, m, grad_made + at * m);
        combine_row(row + m, low + at * low_channels, a + m, b + m, c + m, low_channels, grad_low + at * low_channels);
    }
    return 0;
}
