/* SRU alone: forward and backward, in both layouts. */
#include "gate.h"
#include "kernels.h"

/* x and out: (N, C, H*W) in the layout of `channels_last`; mean and rstd: (N, groups). Returns 0, or 1 without
 * memory. */
int sru_forward(const float *x, const float *scale, const float *shift, int64_t samples, int64_t channels,
                int64_t positions, int channels_last, int64_t groups, double eps, float threshold, int hard, int threads,
                float *out, float *mean, float *rstd) {
    Shape s = {samples, channels, positions, channels_last};
    Gate g = {groups, threshold, hard};
    int64_t at_once = block_samples(s), chunks = chunk_count(s), step = chunk_positions(s);
    int64_t values = channels * positions;
    Sample *all = make_samples(s, at_once);
    if (!all) return 1;
    for (int64_t n = 0; n < samples; n += at_once) {
        int64_t count = min_of(at_once, samples - n), tasks = count * chunks;
        measure(s, g, x, 0, scale, shift, eps, n, count, threads, NULL, 0, all, mean, rstd);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t k = i / chunks, first = i % chunks * step, last = min_of(first + step, positions);
            gate_chunk(s, g, x + (n + k) * values, first, last, all[k], out + (n + k) * values);
        }
    }
    free_samples(all);
    return 0;
}

/* grad and grad_x as x; grad_scale and grad_shift: (C). */
int sru_backward(const float *grad, const float *x, const float *scale, const float *shift, const float *mean,
                 const float *rstd, int64_t samples, int64_t channels, int64_t positions, int channels_last,
                 int64_t groups, float threshold, int hard, int threads, float *grad_x, double *grad_scale,
                 double *grad_shift) {
    Shape s = {samples, channels, positions, channels_last};
    Gate g = {groups, threshold, hard};
    int64_t at_once = block_samples(s), chunks = chunk_count(s), step = chunk_positions(s);
    int64_t values = channels * positions;
    Sample *all = make_samples(s, at_once);
    if (!all) return 1;
    memset(grad_scale, 0, channels * sizeof(double));
    memset(grad_shift, 0, channels * sizeof(double));
    for (int64_t n = 0; n < samples; n += at_once) {
        int64_t count = min_of(at_once, samples - n), tasks = count * chunks;
        for (int64_t k = 0; k < count; k++)
            spread(s, g, scale, shift, mean + (n + k) * groups, rstd + (n + k) * groups, all[k]);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t k = i / chunks, chunk = i % chunks, first = chunk * step, last = min_of(first + step, positions);
            double *sum = all[k].sum + chunk * channels, *product = all[k].product + chunk * channels;
            memset(sum, 0, channels * sizeof(double));
            memset(product, 0, channels * sizeof(double));
            add_grad_sums(s, g, x + (n + k) * values, grad + (n + k) * values, first, last, all[k], sum, product);
        }
        for (int64_t k = 0; k < count; k++) finish_grad_sums(s, g, scale, all[k], grad_scale, grad_shift);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t k = i / chunks, first = i % chunks * step, last = min_of(first + step, positions);
            grad_chunk(s, g, x + (n + k) * values, grad + (n + k) * values, first, last, all[k],
                       grad_x + (n + k) * values);
        }
    }
    free_samples(all);
    return 0;
}
