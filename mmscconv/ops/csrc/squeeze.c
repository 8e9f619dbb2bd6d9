/* SRU and the two squeezes of the CRU behind it, channels last: X^w never leaves the caches, nor does its gradient. */
#include "gate.h"
#include "gemm.h"
#include "kernels.h"
#include "pool.h"

/* SRU and both squeezes: out_up = up * X^w[:cut] + bias_up and out_low = low * pool(X^w[cut:]) + bias_low, (N,
 * squeezed_up, H, W) and (N, squeezed_low, H', W'), with the weights up and low in panels and NULL for no bias. The pool
 * averages windows of pool_height x pool_width, cut off where the image ends; 1 and 1 for none. mean and rstd: (N,
 * groups). */
int sru_squeeze(const float *x, const float *scale, const float *shift, const float *up, const float *low,
                const float *bias_up, const float *bias_low, int64_t samples, int64_t channels, int64_t height, int64_t width, int64_t groups, double eps,
                float threshold, int hard, int64_t cut, int64_t squeezed_up, int64_t squeezed_low, int64_t pool_height,
                int64_t pool_width, int threads, float *out_up, float *out_low, float *mean, float *rstd) {
    int64_t positions = height * width, pooled = pool_height * pool_width > 1;
    int64_t step = pooled ? pool_height * width : BLOCK_ROWS, blocks = (positions + step - 1) / step;
    int64_t columns = (width + pool_width - 1) / pool_width; /* of out_low, whose lines are the blocks */
    Shape s = {samples, channels, positions, 1};
    Gate g = {groups, threshold, hard};
    int64_t at_once = block_samples(s), room = step * channels + (pooled ? columns * (channels - cut) : 0);
    float *scratch = malloc(threads * room * sizeof(float));
    Sample *all = make_samples(s, at_once);
    int failed = !scratch || !all;
    for (int64_t n = 0; n < samples && !failed; n += at_once) {
        int64_t count = min_of(at_once, samples - n);
        measure(s, g, x, scale, shift, eps, n, count, threads, all, mean, rstd);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < count * blocks; i++) {
            int64_t k = i / blocks, first = i % blocks * step, rows = min_of(step, positions - first);
            float *reconstructed = scratch + thread_number() * room, *means = reconstructed + step * channels;
            int64_t at = (n + k) * positions + first, depth = channels - cut;
            gate_chunk(s, g, x + at * channels, 0, rows, all[k], reconstructed);
            gemm(bias_up, reconstructed, channels, rows, up, cut, squeezed_up, out_up + at * squeezed_up, squeezed_up);
            if (pooled) {
                pool_lines(reconstructed + cut, width, channels, depth, rows / width, pool_width, means);
                gemm(bias_low, means, depth, columns, low, depth, squeezed_low,
                     out_low + ((n + k) * blocks + i % blocks) * columns * squeezed_low, squeezed_low);
            } else {
                gemm(bias_low, reconstructed + cut, channels, rows, low, depth, squeezed_low, out_low + at * squeezed_low,
                     squeezed_low);
            }
        }
    }
    free(scratch);
    if (all) free_samples(all);
    return failed;
}

/* Both squeezes' weights, transposed and in panels, and the gradients of their outputs. */
typedef struct {
    const float *up, *low, *grad_up, *grad_low;
    int64_t cut, squeezed_up, squeezed_low;
} Squeezes;

/* The gradient of X^w at `rows` positions from position `at` on, counted over all samples. */
static void reconstructed_grad(Shape s, Squeezes q, int64_t at, int64_t rows, float *grad) {
    gemm(NULL, q.grad_up + at * q.squeezed_up, q.squeezed_up, rows, q.up, q.squeezed_up, q.cut, grad, s.channels);
    gemm(NULL, q.grad_low + at * q.squeezed_low, q.squeezed_low, rows, q.low, q.squeezed_low, s.channels - q.cut,
         grad + q.cut, s.channels);
}

/* The gradients of sru_squeeze's inputs from those of its outputs, (N, squeezed_up, H*W) and (N, squeezed_low, H*W). The
 * weights come transposed, (cut, squeezed_up) and (C - cut, squeezed_low), in panels. Positions are cut into PARTS
 * parts, whatever the number of threads: each part sums up weight gradients of its own.
 *
 * grad_x: as x; grad_scale, grad_shift: (C); grad_weight_up: (squeezed_up, cut); grad_weight_low: (squeezed_low,
 * C - cut). Returns 0, or 1 without memory. */
#define PARTS 16
int sru_squeeze_backward(const float *grad_up, const float *grad_low, const float *x, const float *scale,
                         const float *shift, const float *mean, const float *rstd, const float *up, const float *low,
                         int64_t samples, int64_t channels, int64_t positions, int64_t groups, float threshold, int hard,
                         int64_t cut, int64_t squeezed_up, int64_t squeezed_low, int threads, float *grad_x,
                         double *grad_scale, double *grad_shift, float *grad_weight_up, float *grad_weight_low) {
    Shape s = {samples, channels, positions, 1};
    Gate g = {groups, threshold, hard};
    Squeezes q = {up, low, grad_up, grad_low, cut, squeezed_up, squeezed_low};
    int64_t at_once = block_samples(s), chunks = chunk_count(s), step = chunk_positions(s);
    int64_t weights_up = squeezed_up * cut, weights = weights_up + squeezed_low * (channels - cut);
    int64_t room = 2 * BLOCK_ROWS * channels + STEP;
    float *scratch = malloc(threads * room * sizeof(float)), *parts = calloc(PARTS * weights, sizeof(float));
    Sample *all = make_samples(s, at_once);
    int failed = !scratch || !parts || !all;
    memset(grad_scale, 0, channels * sizeof(double));
    memset(grad_shift, 0, channels * sizeof(double));
    for (int64_t n = 0; n < samples && !failed; n += at_once) {
        int64_t count = min_of(at_once, samples - n), tasks = count * chunks;
        for (int64_t k = 0; k < count; k++)
            spread(s, g, scale, shift, mean + (n + k) * groups, rstd + (n + k) * groups, all[k]);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t part = 0; part < PARTS; part++)
            for (int64_t i = tasks * part / PARTS; i < tasks * (part + 1) / PARTS; i++) {
                int64_t k = i / chunks, chunk = i % chunks, last = min_of((chunk + 1) * step, positions);
                double *sum = all[k].sum + chunk * channels, *product = all[k].product + chunk * channels;
                float *grad = scratch + thread_number() * room, *reconstructed = grad + BLOCK_ROWS * channels;
                memset(sum, 0, channels * sizeof(double));
                memset(product, 0, channels * sizeof(double));
                for (int64_t first = chunk * step; first < last; first += BLOCK_ROWS) {
                    int64_t rows = min_of(BLOCK_ROWS, last - first), at = (n + k) * positions + first;
                    reconstructed_grad(s, q, at, rows, grad);
                    pair_grads_of_rows(s, g, x + at * channels, grad, rows, all[k], reconstructed,
                                       grad_x + at * channels, sum, product);
                    add_products(grad_up + at * squeezed_up, squeezed_up, squeezed_up, reconstructed, channels, cut, rows,
                                 parts + part * weights);
                    add_products(grad_low + at * squeezed_low, squeezed_low, squeezed_low, reconstructed + cut, channels,
                                 channels - cut, rows, parts + part * weights + weights_up);
                }
            }
        for (int64_t k = 0; k < count; k++) finish_grad_sums(s, g, scale, all[k], grad_scale, grad_shift);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t k = i / chunks, first = i % chunks * step, at = (n + k) * positions + first;
            finish_grads(s, x + at * channels, min_of(step, positions - first), all[k], grad_x + at * channels);
        }
    }
    for (int64_t i = 0; i < weights && !failed; i++) {
        double total = 0;
        for (int64_t part = 0; part < PARTS; part++) total += parts[part * weights + i];
        *(i < weights_up ? grad_weight_up + i : grad_weight_low + i - weights_up) = (float)total;
    }
    free(scratch);
    free(parts);
    if (all) free_samples(all);
    return failed;
}
