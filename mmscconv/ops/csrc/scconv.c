/* A whole SCConv for inference: the kernels of squeeze.c and transform.c one after the other over as many samples as
 * the caches hold, so that squeezed maps never leave them. */
#include "kernels.h"
#include "pool.h"
#include "transform.h"

typedef struct {
    const float *scale, *shift, *up, *low, *bias_up, *bias_low, *packed, *bias1, *bias2, *norm_scale, *norm_shift;
    int64_t channels, groups, cut;
    double eps;
    float threshold;
    int hard, relu;
} Layer;

/* scconv for the samples of `all`. */
static int some_samples(Layer layer, Geometry all, const float *x, int threads, float *out) {
    int64_t u = all.up_channels, l = all.low_channels, positions = all.height * all.width;
    int64_t pool_height = all.stride[0], pool_width = all.stride[1], out_positions = all.out[0] * all.out[1];
    int64_t at_once = block_samples((Shape){all.samples, layer.channels, positions, 1});
    at_once = min_of(at_once, all.samples);
    float *x_up = malloc(at_once * positions * u * sizeof(float));
    float *pooled = malloc(at_once * out_positions * u * sizeof(float));
    float *x_low = malloc(at_once * out_positions * l * sizeof(float));
    float *statistics = malloc(at_once * (2 * layer.groups + all.channels) * sizeof(float));
    int failed = !x_up || !pooled || !x_low || !statistics, has_centre = all.centre >= 0;
    for (int64_t n = 0; n < all.samples && !failed; n += at_once) {
        Geometry g = all;
        g.samples = min_of(at_once, all.samples - n);
        failed = sru_squeeze(x + n * positions * layer.channels, layer.scale, layer.shift, layer.up, layer.low,
                             layer.bias_up, layer.bias_low, g.samples, layer.channels, g.height, g.width, layer.groups,
                             layer.eps, layer.threshold, layer.hard, layer.cut, u, l, pool_height, pool_width, threads,
                             x_up, x_low, statistics, statistics + at_once * layer.groups);
        if (failed) break;
        if (!has_centre) { /* without a brace, GCC takes the pragma for the branch where it runs no threads */
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t i = 0; i < g.samples * g.out[0]; i++) {
                int64_t first = i % g.out[0] * pool_height, lines = min_of(pool_height, g.height - first);
                pool_lines(x_up + (i / g.out[0] * g.height + first) * g.width * u, g.width, u, u, lines, pool_width,
                           pooled + i * g.out[1] * u);
            }
        }
        failed = transform_fuse(x_up, has_centre ? NULL : pooled, x_low, layer.packed, layer.bias1, layer.bias2,
                                layer.norm_scale, layer.norm_shift, (const int64_t *)&g, layer.relu, threads,
                                out + n * out_positions * g.channels, statistics + 2 * at_once * layer.groups);
    }
    free(x_up);
    free(pooled);
    free(x_low);
    free(statistics);
    return failed;
}

/* x: (N, C, H, W). scale to bias_low, and groups to cut: as sru_squeeze has them; packed to norm_shift, relu: as
 * transform_fuse has them, and geometry as well, whose stride is the pool of both 1x1 convolutions. out: (N, C2, H',
 * W'). Returns 0, or 1 without memory.
 *
 * Each thread takes samples of its own, without waiting for others after each pass; all threads together take the
 * remainder. */
int scconv(const float *x, const float *scale, const float *shift, const float *up, const float *low,
           const float *bias_up, const float *bias_low, const float *packed, const float *bias1, const float *bias2,
           const float *norm_scale, const float *norm_shift, int64_t channels, int64_t groups, double eps,
           float threshold, int hard, int64_t cut, const int64_t *geometry, int relu, int threads, float *out) {
    Layer layer = {scale,      shift,      up,       low,    bias_up, bias_low, packed,    bias1, bias2,
                   norm_scale, norm_shift, channels, groups, cut,     eps,      threshold, hard,  relu};
    Geometry own, rest;
    memcpy(&own, geometry, sizeof own);
    rest = own;
    own.samples /= threads;
    rest.samples %= threads;
    int64_t in_step = own.samples * own.height * own.width * channels;
    int64_t out_step = own.samples * own.out[0] * own.out[1] * own.channels;
    int failed = 0;
    if (own.samples) {
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
        for (int64_t i = 0; i < threads; i++)
            failed |= some_samples(layer, own, x + i * in_step, 1, out + i * out_step);
    }
    if (rest.samples && !failed)
        failed = some_samples(layer, rest, x + threads * in_step, threads, out + threads * out_step);
    return failed;
}
