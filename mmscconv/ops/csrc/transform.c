/* CRU's transform and fuse in one pass, Eq. 5-9: GWC, PWC1, PWC2, the weighted sum, the norm behind the
 * layer and a ReLU, channels last. Only the result is written.
 *
 * The fuse's weights come from means over the positions. A convolution's mean is the convolution of the means of its
 * taps' inputs, so the weights are known before the first output. A tile of outputs is then summed up in registers:
 * Y2, times beta2 / beta1, plus Y1, times beta1. */
#include "kernels.h"
#include "transform.h"
#include "transform_tiles.h"

/* Beyond this difference of means one of the two softmax weights underflows; clamp the difference. */
#define LARGEST_DIFFERENCE 40.0f

/* Inputs of PWC2, PWC1 and the GWC's taps for the first row of a tile, and the distances to the next rows. */
typedef struct {
    const float *low, *up, *taps;
    int64_t low_stride, up_stride, tap_stride, tap_down, tap_right; /* from row to row; from tap to tap */
    int64_t before; /* channels of the groups before the one that the taps see */
} Inputs;

/* sum = Y2 * ratio + Y1 in STEP columns, without biases: one loop over the 2 + taps convolutions, so that the compiler
 * keeps the sums in registers. For columns of Y2 that copy X_low, `copied` points to X_low's values. */
static inline __attribute__((always_inline)) void sum_up(Geometry g, Plan p, Inputs in, const float *panel,
                                                         const float *copied, const float *ratio, Vec (*sum)[2],
                                                         const int rows) {
    int64_t ky = 0, kx = -1, tap = -1;
    if (copied) {
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < 2; v++)
                sum[r][v] = *(const Vec *)(copied + r * in.low_stride + v * LANES) * *(const Vec *)(ratio + v * LANES);
        panel += g.low_channels * PANEL;
    }
    for (int64_t i = copied ? 1 : 0; i < 2 + p.taps; i++) {
        const float *from;
        int64_t stride, depth;
        if (i == 0) {
            from = in.low, stride = in.low_stride, depth = g.low_channels;
        } else if (i == 1) {
            if (g.centre >= 0) continue;
            from = in.up, stride = in.up_stride, depth = g.up_channels;
        } else {
            if (++kx == g.kernel[1]) kx = 0, ky++;
            from = in.taps + ky * in.tap_down + kx * in.tap_right, stride = in.tap_stride, depth = p.group_channels;
            if (++tap == g.centre) from -= in.before, depth = g.up_channels;
        }
        accumulate(sum, from, stride, 1, panel, PANEL, depth, rows, 2);
        panel += depth * PANEL;
        if (i == 0)
#pragma GCC unroll 14
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < 2; v++) sum[r][v] *= *(const Vec *)(ratio + v * LANES);
    }
}

static inline __attribute__((always_inline)) void output_tile(Geometry g, Plan p, Inputs in, const float *panel,
                                                                                                                           const float *copied, Ends e, int relu, int64_t columns,
                                                             int bf16, Map *out, const int rows) {
    Sums sum = {0};
    for (int r = 0; r < rows; r++) /* the lines to be written arrive while the sums are made */
        for (int v = 0; v < 2; v++) __builtin_prefetch(to_value(out, bf16, r * g.channels + v * LANES), 1);
    sum_up(g, p, in, panel, copied, e.ratio, sum, rows);
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < 2; v++) {
            Vec z = sum[r][v] * *(const Vec *)(e.factor + v * LANES) + *(const Vec *)(e.offset + v * LANES);
            sum[r][v] = relu ? (Vec)((Mask)z & ~(Mask)(z < 0)) : z; /* a NaN stays one */
        }
        if (bf16)
            narrow((const float *)sum[r], min_of(STEP, columns), (uint16_t *)out + r * g.channels);
        else
            copy_columns((float *)out + r * g.channels, sum[r], columns);
    }
}

static __attribute__((noinline)) void output_rows(Geometry g, Plan p, Inputs in, const float *panel,
                                                  const float *copied, Ends e, int relu, int64_t columns, int bf16, Map *out,
                                                  int64_t rows) {
#define OUTPUT(R) output_tile(g, p, in, panel, copied, e, relu, columns, bf16, out, R)
    FOR_ROWS_OF_TILE(rows, OUTPUT)
#undef OUTPUT
}

static const float minus_one[STEP] = {[0 ... STEP - 1] = -1.f};

/* Computes the weights of the fuse of some samples, at most TILE_ROWS, from their means: a panel of weights is read once
 * for all of them. Biases, the norm's scale and shift may be NULL; beta1: of the first sample. */
static void finish_panel(Geometry g, Plan p, const float *packed, int64_t index, const float *mean, int64_t samples,
                         const float *bias1, const float *bias2, const float *scale, const float *shift, Ends e,
                         int64_t length, float *beta1) {
    const float *panel = packed + index * p.depth * PANEL;
    int64_t group = index / p.panels_each, in_group = index % p.panels_each * PANEL, each = g.channels / g.groups;
    int64_t before = group * p.group_channels;
    const float *up = mean + g.low_channels, *taps = up + (g.centre < 0 ? g.up_channels : 0) + before;
    Inputs in = {mean, up, taps, p.means, p.means, p.means, g.kernel[1] * g.up_channels, g.up_channels, before};
    float differences[TILE_ROWS][PANEL];
    for (int64_t j = 0; j < PANEL; j += STEP) {
#define DIFFERENCES(R)                                                                     \
    do {                                                                                   \
        Sums sum = {0};                                                                    \
        sum_up(g, p, in, panel + j, NULL, minus_one, sum, R);                              \
        for (int r = 0; r < R; r++) copy_columns(differences[r] + j, sum[r], STEP);               \
    } while (0)
        FOR_ROWS_OF_TILE(samples, DIFFERENCES)
#undef DIFFERENCES
    }
    for (int64_t k = 0; k < samples; k++)
        for (int64_t j = 0; j < min_of(PANEL, each - in_group); j++) {
            int64_t c = group * each + in_group + j, at = k * length + index * PANEL + j;
            float b1 = bias1 ? bias1[c] : 0.f, b2 = bias2 && c < g.pwc2_channels ? bias2[c] : 0.f;
            float d = differences[k][j] + b1 - b2;
            d = d > LARGEST_DIFFERENCE ? LARGEST_DIFFERENCE : d;
            d = d < -LARGEST_DIFFERENCE ? -LARGEST_DIFFERENCE : d;
            float ratio = expf(-d), factor = (scale ? scale[c] : 1.f) / (1.f + ratio);
            beta1[k * g.channels + c] = 1.f / (1.f + ratio);
            e.ratio[at] = ratio;
            e.factor[at] = factor;
            e.offset[at] = (b2 * ratio + b1) * factor + (shift ? shift[c] : 0.f);
        }
}

/* finish_panel for all panels of `count` samples. */
static void finish_panels(Geometry g, Plan p, const float *packed, const float *mean, int64_t count, const float *bias1,
                          const float *bias2, const float *scale, const float *shift, Ends e, int threads, float *beta1) {
    int64_t panels = g.groups * p.panels_each, length = panels * PANEL, parts = (count + TILE_ROWS - 1) / TILE_ROWS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < panels * parts; i++) {
        int64_t k = i % parts * TILE_ROWS;
        finish_panel(g, p, packed, i / parts, mean + k * p.means, min_of(TILE_ROWS, count - k), bias1, bias2, scale, shift,
                     at_sample(e, k, length), length, beta1 + k * g.channels);
    }
}

/* The output rows [first, last) of one sample in the columns of one panel. */
static void output_band(Geometry g, Plan p, const float *padded, const float *up, const float *low, const float *packed,
                        int64_t index, Ends e, int relu, int64_t first, int64_t last, int bf16, Map *out) {
    int64_t group = index / p.panels_each, in_group = index % p.panels_each * PANEL, each = g.channels / g.groups;
    int64_t before = group * p.group_channels;
    for (int64_t j = 0; j < min_of(PANEL, each - in_group); j += STEP) {
        int64_t c = group * each + in_group + j, columns = min_of(STEP, each - in_group - j), at = index * PANEL + j;
        const float *panel = packed + index * p.depth * PANEL + j;
        Ends ends = {e.ratio + at, e.factor + at, e.offset + at};
        for (int64_t y = first; y < last; y++)
            for (int64_t x = 0, rows; x < g.out[1]; x += rows) {
                int64_t position = y * g.out[1] + x;
                rows = next_rows(g.out[1] - x);
                int64_t corner = y * g.stride[0] * p.padded[1] + x * g.stride[1];
                Inputs in = {low + position * g.low_channels, up ? up + position * g.up_channels : NULL,
                             padded + corner * g.up_channels + before, g.low_channels, g.up_channels,
                             g.stride[1] * g.up_channels, g.dilation[0] * p.padded[1] * g.up_channels,
                             g.dilation[1] * g.up_channels, before};
                const float *copied = columns == STEP && c >= g.pwc2_channels ? in.low + c - g.pwc2_channels : NULL;
                output_rows(g, p, in, panel, copied, ends, relu, columns, bf16,
                            to_value(out, bf16, position * g.channels + c), rows);
            }
    }
}

/* The arguments of transform_fuse for some samples. */
typedef struct {
    const uint16_t *x, *up, *low;
    const float *packed, *bias1, *bias2, *scale, *shift;
    int relu, threads;
} Call;

/* transform_fuse in tiles. Returns -1, with nothing written, if the maps hold anything but numbers, or
 * the window is one that tiles do not read. */
static int fuse_in_tiles(Geometry g, Plan p, Call call, uint16_t *out, float *beta1) {
    int resized = g.out[0] != g.height || g.out[1] != g.width;
    if (g.dilation[1] != 1 || (!call.up && resized)) return -1;
    TilePlan t = tile_plan(g, p);
    int threads = call.threads, finite = 1;
    int64_t positions = g.out[0] * g.out[1], panels = g.groups * p.panels_each, bands = bands_of(g), u = g.up_channels;
    int64_t padded_line = p.padded[1] * u + g.width * u, line = max_of(padded_line, g.out[1] * max_of(u, g.low_channels));
    int64_t weights_line = g.kernel[1] * p.group_channels * PANEL, length = panels * PANEL, N = g.samples;
    int64_t floats_room = max_of(padded_line + line, weights_line) + STEP;
    uint16_t *steps = tile_memory(panels * t.steps * TILE_STEP);
    uint16_t *images = tile_memory(N * (t.low_room + t.up_room + t.split_room));
    float *floats = calloc(threads * floats_room, sizeof(float)), *mean = malloc(N * p.means * sizeof(float));
    float *ends = calloc(3 * N * length, sizeof(float));
    double *parts = malloc(N * bands * p.means * sizeof(double));
    int failed = !steps || !images || !floats || !mean || !ends || !parts;
    Ends all = {ends, ends + N * length, ends + 2 * N * length};
    if (!failed) {
#pragma omp parallel for num_threads(threads) schedule(static) reduction(& : finite)
        for (int64_t i = 0; i < N * bands; i++) {
            int64_t k = i / bands;
            float *own = floats + thread_number() * floats_room;
            finite &= take_band(g, p, t, call.x + k * g.height * g.width * u, call.up ? call.up + k * positions * u : NULL,
                                call.low + k * positions * g.low_channels, i % bands, bands, images_of(t, images, k), own,
                                own + padded_line, parts + i * p.means);
        }
        means_of_bands(g, p, N, bands, threads, parts, mean);
    }
    if (!failed && finite) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < panels; i++)
            transform_steps(g, p, call.packed + i * p.depth * PANEL, i, steps + i * t.steps * TILE_STEP,
                            floats + thread_number() * floats_room);
        finish_panels(g, p, call.packed, mean, N, call.bias1, call.bias2, call.scale, call.shift, all, threads, beta1);
#pragma omp parallel num_threads(threads)
        {
            begin_tiles();
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < N * bands * panels; i++) {
                int64_t k = i / (bands * panels), band = i / panels % bands;
                band_in_tiles(g, p, t, images_of(t, images, k), steps + i % panels * t.steps * TILE_STEP, i % panels,
                              at_sample(all, k, length), call.relu, g.out[0] * band / bands,
                              g.out[0] * (band + 1) / bands, out + k * positions * g.channels);
            }
            end_tiles();
        }
    }
    free(steps);
    free(images);
    free(floats);
    free(mean);
    free(ends);
    free(parts);
    return failed ? 1 : finite ? 0 : -1;
}

/* x: (N, H, W, u), GWC's input; up: (N, H', W', u) and low: (N, H', W', l), the inputs of PWC1 and PWC2, all dense, and
 * up NULL if there is a centre; packed: [panels][depth][PANEL], separate panels for each group of GWC, where the last
 * C - pwc2_channels columns of PWC2 copy X_low; bias1, bias2, scale, shift: (C), (pwc2_channels), (C), (C), or NULL;
 * geometry: 8 + 5 * 2 + 1 numbers in Geometry's order; out: (N, H', W', C); beta1: (N, C). Returns 0, or 1 without memory. */
int transform_fuse(const Map *x, const Map *up, const Map *low, const float *packed, const float *bias1,
                   const float *bias2, const float *scale, const float *shift, const int64_t *geometry, int relu, int bf16,
                   int threads, Map *out, float *beta1) {
    Geometry g;
    memcpy(&g, geometry, sizeof g);
    Plan p = plan_of(g);
    int64_t positions = g.out[0] * g.out[1], panels = g.groups * p.panels_each;
    int64_t bands = bands_of(g);
    int64_t at_once = samples_at_once((Shape){g.samples, g.channels, positions, 1}, bf16);
    if (bf16 == IN_TILES && tiles_granted()) {
        int64_t in = g.height * g.width * g.up_channels, in_up = positions * g.up_channels, in_low = positions * g.low_channels;
        int status = 0;
        for (int64_t n = 0; n < g.samples && status == 0; n += at_once) {
            Geometry some = g;
            some.samples = min_of(at_once, g.samples - n);
            Call call = {(const uint16_t *)x + n * in, up ? (const uint16_t *)up + n * in_up : NULL,
                         (const uint16_t *)low + n * in_low, packed, bias1, bias2, scale, shift, relu, threads};
            status = fuse_in_tiles(some, p, call, (uint16_t *)out + n * positions * g.channels, beta1 + n * g.channels);
        }
        if (status >= 0) return status;
    }
    int64_t image = p.padded[0] * p.padded[1] * g.up_channels;
    float *padded = calloc(at_once * image, sizeof(float));
    double *parts = malloc(at_once * bands * p.means * sizeof(double));
    float *mean = malloc(at_once * p.means * sizeof(float));
    float *ends = calloc(3 * at_once * panels * PANEL, sizeof(float));
    int64_t of_low = positions * g.low_channels, of_up = up ? positions * g.up_channels : 0;
    float *floats = bf16 ? malloc(at_once * (of_low + of_up) * sizeof(float)) : NULL; /* of low and up */
    int failed = !padded || !parts || !mean || !ends || (bf16 && !floats);
    Ends all = {ends, ends + at_once * panels * PANEL, ends + 2 * at_once * panels * PANEL};
    for (int64_t n = 0; n < g.samples && !failed; n += at_once) {
        int64_t count = min_of(at_once, g.samples - n);
        const float *lows = all_values(from_value(low, bf16, n * of_low), bf16, count * of_low, threads, floats);
        const float *ups = NULL;
        if (up)
            ups = all_values(from_value(up, bf16, n * of_up), bf16, count * of_up, threads,
                             bf16 ? floats + at_once * of_low : NULL);
        see(g, p, x, bf16, n, ups, lows, count, bands, threads, padded, parts, mean);
        finish_panels(g, p, packed, mean, count, bias1, bias2, scale, shift, all, threads, beta1 + n * g.channels);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < count * bands * panels; i++) {
            int64_t k = i / (bands * panels), band = i / panels % bands, s = n + k;
            output_band(g, p, padded + k * image, ups ? ups + k * of_up : NULL, lows + k * of_low, packed, i % panels,
                        at_sample(all, k, panels * PANEL), relu, g.out[0] * band / bands, g.out[0] * (band + 1) / bands,
                        bf16, to_value(out, bf16, s * positions * g.channels));
        }
    }
    free(padded);
    free(parts);
    free(mean);
    free(ends);
    free(floats);
    return failed;
}
