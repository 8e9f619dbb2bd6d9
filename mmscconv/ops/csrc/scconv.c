/* A whole SCConv for inference: the kernels of squeeze.c and transform.c one after the other over as many samples as the
 * caches hold, so that what is squeezed never leaves them. */
#include "pool.h"

int sru_squeeze(const float *x, const float *scale, const float *shift, const float *up, const float *low,
                const float *bias_up, const float *bias_low, int64_t samples, int64_t channels, int64_t height,
                int64_t width, int64_t groups, double eps, float threshold, int hard, int64_t cut, int64_t squeezed_up,
                int64_t squeezed_low, int64_t pool_height, int64_t pool_width, int threads, float *out_up, float *out_low,
                float *mean, float *rstd);
int transform_fuse(const float *x, const float *up, const float *low, const float *packed, const float *bias1,
                   const float *bias2, const float *scale, const float *shift, const int64_t *geometry, int relu,
                   int threads, float *out, float *beta1);

/* x: (N, C, H, W). scale to bias_low, and groups to cut: as sru_squeeze has them; packed to norm_shift, relu: as
 * transform_fuse has them, and geometry as well, whose stride is the pool of both 1x1 convolutions. out: (N, C2, H', W').
 * Returns 0, or 1 without memory. */
int scconv(const float *x, const float *scale, const float *shift, const float *up, const float *low,
           const float *bias_up, const float *bias_low, const float *packed, const float *bias1, const float *bias2,
           const float *norm_scale, const float *norm_shift, int64_t channels, int64_t groups, double eps,
           float threshold, int hard, int64_t cut, const int64_t *geometry, int relu, int threads, float *out) {
    int64_t numbers[19]; /* of transform.h's Geometry: samples, height, width, u, l, C2, made, groups, 5 pairs, centre */
    memcpy(numbers, geometry, sizeof numbers);
    int64_t samples = numbers[0], height = numbers[1], width = numbers[2], u = numbers[3], l = numbers[4];
    int64_t out_channels = numbers[5], pool_height = numbers[10], pool_width = numbers[11];
    int64_t out_height = numbers[16], out_width = numbers[17], positions = height * width;
    int64_t out_positions = out_height * out_width, has_centre = numbers[18] >= 0;
    int64_t at_once = block_samples((Shape){samples, channels, positions, 1});
    float *x_up = malloc(at_once * positions * u * sizeof(float));
    float *pooled = malloc(at_once * out_positions * u * sizeof(float));
    float *x_low = malloc(at_once * out_positions * l * sizeof(float));
    float *statistics = malloc(at_once * (2 * groups + out_channels) * sizeof(float));
    int failed = !x_up || !pooled || !x_low || !statistics;
    for (int64_t n = 0; n < samples && !failed; n += at_once) {
        int64_t count = numbers[0] = min_of(at_once, samples - n);
        failed = sru_squeeze(x + n * positions * channels, scale, shift, up, low, bias_up, bias_low, count, channels, height,
                             width, groups, eps, threshold, hard, cut, u, l, pool_height, pool_width, threads, x_up, x_low,
                             statistics, statistics + at_once * groups);
        if (failed) break;
        if (!has_centre)
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t i = 0; i < count * out_height; i++) {
                int64_t first = i % out_height * pool_height, lines = min_of(pool_height, height - first);
                pool_lines(x_up + (i / out_height * height + first) * width * u, width, u, u, lines, pool_width,
                           pooled + i * out_width * u);
            }
        failed = transform_fuse(x_up, has_centre ? NULL : pooled, x_low, packed, bias1, bias2, norm_scale, norm_shift,
                                numbers, relu, threads, out + n * out_positions * out_channels,
                                statistics + 2 * at_once * groups);
    }
    free(x_up);
    free(pooled);
    free(x_low);
    free(statistics);
    return failed;
}
