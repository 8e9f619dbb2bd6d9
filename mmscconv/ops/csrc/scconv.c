/* A whole SCConv for inference: the kernels of squeeze.c and transform.c one after the other over as many samples as
 * the caches hold, so that squeezed maps never leave them. */
#include "kernels.h"
#include "maps.h"
#include "pool.h"
#include "transform.h"

typedef struct {
    const float *scale, *shift, *up, *low, *bias_up, *bias_low, *packed, *bias1, *bias2, *norm_scale, *norm_shift;
    int64_t channels, groups, cut;
    double eps;
    float threshold;
    int hard, relu, bf16;
} Layer;

/* scconv for the samples of `all`. */
static int some_samples(Layer layer, Geometry all, const Map *x, int threads, Map *out) {
    int64_t u = all.up_channels, l = all.low_channels, positions = all.height * all.width;
    int64_t pool_height = all.stride[0], pool_width = all.stride[1], out_positions = all.out[0] * all.out[1];
    int64_t at_once = samples_at_once((Shape){all.samples, layer.channels, positions, 1}, layer.bf16);
    at_once = min_of(at_once, all.samples);
    int64_t lines_room = layer.bf16 ? pool_height * all.width * u + all.out[1] * u : 0;
    Map *x_up = malloc(bytes_of(at_once * positions * u, layer.bf16));
    Map *pooled = malloc(bytes_of(at_once * out_positions * u, layer.bf16));
    Map *x_low = malloc(bytes_of(at_once * out_positions * l, layer.bf16));
    float *lines_of_threads = layer.bf16 ? malloc(threads * lines_room * sizeof(float)) : NULL;
    float *statistics = malloc(at_once * (2 * layer.groups + all.channels) * sizeof(float));
    int failed = !x_up || !pooled || !x_low || !statistics || (layer.bf16 && !lines_of_threads);
    int has_centre = all.centre >= 0;
    for (int64_t n = 0; n < all.samples && !failed; n += at_once) {
        Geometry g = all;
        g.samples = min_of(at_once, all.samples - n);
        failed = sru_squeeze(from_value(x, layer.bf16, n * positions * layer.channels), layer.scale, layer.shift, layer.up, layer.low,
                             layer.bias_up, layer.bias_low, g.samples, layer.channels, g.height, g.width, layer.groups,
                             layer.eps, layer.threshold, layer.hard, layer.cut, u, l, pool_height, pool_width,
                             layer.bf16, threads, x_up, x_low, statistics, statistics + at_once * layer.groups);
        if (failed) break;
        if (!has_centre) { /* without a brace, GCC takes the pragma for the branch where it runs no threads */
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t i = 0; i < g.samples * g.out[0]; i++) {
                int64_t first = i % g.out[0] * pool_height, lines = min_of(pool_height, g.height - first);
                float *own = own_part_of(lines_of_threads, lines_room);
                float *to = place_at(pooled, layer.bf16, i * g.out[1] * u, own);
                const float *from = values_at(x_up, layer.bf16, (i / g.out[0] * g.height + first) * g.width * u,
                                              lines * g.width * u, layer.bf16 ? own + g.out[1] * u : NULL);
                pool_lines(from, g.width, u, u, lines, pool_width, to);
                put(pooled, layer.bf16, i * g.out[1] * u, g.out[1] * u, to);
            }
        }
        failed = transform_fuse(x_up, has_centre ? NULL : pooled, x_low, layer.packed, layer.bias1, layer.bias2,
                                layer.norm_scale, layer.norm_shift, (const int64_t *)&g, layer.relu, layer.bf16, threads,
                                to_value(out, layer.bf16, n * out_positions * g.channels), statistics + 2 * at_once * layer.groups);
    }
    free(x_up);
    free(pooled);
    free(x_low);
    free(statistics);
    free(lines_of_threads);
    return failed;
}

/* x: (N, C, H, W). scale to bias_low, and groups to cut: as sru_squeeze has them; packed to norm_shift, relu: as
 * transform_fuse has them, and geometry as well, whose stride is the pool of both 1x1 convolutions. out: (N, C2, H',
 * W'). Returns 0, or 1 without memory.
 *
 * Each thread takes samples of its own, without waiting for others after each pass; all threads together take the
 * remainder. */
int scconv(const Map *x, const float *scale, const float *shift, const float *up, const float *low,
           const float *bias_up, const float *bias_low, const float *packed, const float *bias1, const float *bias2,
           const float *norm_scale, const float *norm_shift, int64_t channels, int64_t groups, double eps,
           float threshold, int hard, int64_t cut, const int64_t *geometry, int relu, int bf16, int threads, Map *out) {
    Layer layer = {scale,      shift,      up,       low,    bias_up, bias_low, packed,    bias1, bias2,
                   norm_scale, norm_shift, channels, groups, cut,     eps,      threshold, hard,  relu, bf16};
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
            failed |= some_samples(layer, own, from_value(x, bf16, i * in_step), 1, to_value(out, bf16, i * out_step));
    }
    if (rest.samples && !failed)
        failed = some_samples(layer, rest, from_value(x, bf16, threads * in_step), threads,
                              to_value(out, bf16, threads * out_step));
    return failed;
}
