/* Backward of transform.c, channels last. With e = beta1 * beta2 * sum over positions of grad * (Y1 - Y2), and e' = e
 * over the number of positions, the gradients of Y1 and Y2 are beta1 * grad + e' and beta2 * grad - e'. Neither is
 * written. The products of grad with the inputs of PWC2, PWC1 and the taps are computed sample by sample: times beta they
 * are the weights' gradients, and times the weights themselves the sum in e. The inputs' gradients are products of grad
 * with weights times beta. */
#include "kernels.h"
#include "transform.h"

#define TASKS 32             /* at least, if there are enough samples: each part of them sums up gradients of its own */
#define SEEN_POSITIONS 224   /* in whole lines: columns are laid out for the weights' gradients */
#define SPREAD_POSITIONS 56  /* in whole lines: products are spread over the inputs' gradients */

/* One sample's inputs for one group of GWC, whose first channel is `before`. */
typedef struct {
    const float *low, *up, *padded;
    int64_t before;
} Seen;

/* Columns that lie side by side in memory, and the distances to the next line and position. */
typedef struct {
    const float *from;
    int64_t down, right, length;
} Run;

static int64_t tap_width(Geometry g, Plan p, int64_t tap) { return tap == g.centre ? g.up_channels : p.group_channels; }

static Run run_at(Geometry g, Plan p, Seen s, int64_t column) {
    int64_t l = g.low_channels, u = g.up_channels, tap = 0;
    if (column < l) return (Run){s.low + column, g.out[1] * l, l, l - column};
    column -= l;
    if (g.centre < 0) {
        if (column < u) return (Run){s.up + column, g.out[1] * u, u, u - column};
        column -= u;
    }
    for (; column >= tap_width(g, p, tap); tap++) column -= tap_width(g, p, tap);
    int64_t ky = tap / g.kernel[1], kx = tap % g.kernel[1], first = tap == g.centre ? 0 : s.before;
    const float *from = s.padded + (ky * g.dilation[0] * p.padded[1] + kx * g.dilation[1]) * u + first + column;
    return (Run){from, g.stride[0] * p.padded[1] * u, g.stride[1] * u, tap_width(g, p, tap) - column};
}

/* Constant lengths for common cases: the compiler then makes vector loops instead of calls. */
#define FOR_LENGTH(length, body)   \
    switch (length) {              \
        case 8: body(8); break;    \
        case 16: body(16); break;  \
        case 32: body(32); break;  \
        case 64: body(64); break;  \
        case 128: body(128); break; \
        default: body(length);     \
    }

static inline __attribute__((always_inline)) void lay_out(Run r, int64_t lines, int64_t width, float *to,
                                                          const int64_t length) {
    for (int64_t y = 0; y < lines; y++)
        for (int64_t x = 0; x < width; x++, to += PANEL)
            memcpy(to, r.from + y * r.down + x * r.right, length * sizeof(float));
}

/* Lays out at most PANEL columns of the inputs of `lines` lines of positions from `first` on: [positions][PANEL]. */
static void lay_out_panel(Geometry g, Plan p, Seen s, int64_t column, int64_t columns, int64_t first, int64_t lines,
                          float *panel) {
    for (int64_t k = 0, length; k < columns; k += length) {
        Run r = run_at(g, p, s, column + k);
        length = min_of(r.length, columns - k);
        r.from += first * r.down;
#define LAY_OUT(L) lay_out(r, lines, g.out[1], panel + k, L)
        FOR_LENGTH(length, LAY_OUT)
#undef LAY_OUT
    }
}

static inline float sum_of(Vec v) {
    float lanes[LANES], sum = 0;
    memcpy(lanes, &v, sizeof v);
    for (int i = 0; i < LANES / 2; i++) lanes[i] += lanes[i + LANES / 2];
    for (int i = 0; i < LANES / 4; i++) lanes[i] += lanes[i + LANES / 4];
    for (int i = 0; i < LANES / 4; i++) sum += lanes[i];
    return sum;
}

/* With one sample's products in a panel of columns, the first `of_low` of which are PWC2's: to += beta * products, and
 * sums = sum over columns of weights * products, PWC2's with the other sign. */
static void add_scaled(const float *weights, int64_t pitch, const float *products, int64_t of_low, int64_t channels,
                       const float *beta1, float *to, double *sums) {
    float is_low[PANEL];
    for (int64_t j = 0; j < PANEL; j++) is_low[j] = j < of_low ? 1.f : 0.f;
    for (int64_t c = 0; c < channels; c++, weights += pitch, to += pitch, products += PANEL) {
        float change = 1.f - beta1[c] - beta1[c];
        Vec difference = {0};
        for (int64_t j = 0; j < PANEL; j += LANES) {
            Vec low = *(const Vec *)(is_low + j), product = *(const Vec *)(products + j);
            *(Vec *)(to + j) += (low * change + beta1[c]) * product;
            difference += *(const Vec *)(weights + j) * product * (1.f - 2.f * low);
        }
        sums[c] = sum_of(difference);
    }
}

/* One panel of columns of one group, over the samples [first, last): adds beta * products to the weights' gradients, and
 * writes its part of the sums in e, [samples][channels of the group]. */
static void products_of_panel(Geometry g, Plan p, const float *grad, const float *padded, const float *up,
                              const float *low, const float *weights, const float *beta1, int64_t group, int64_t column,
                              int64_t first, int64_t last, float *panel, float *products, double *sums,
                              float *grad_weights) {
    int64_t positions = g.out[0] * g.out[1], each = g.channels / g.groups, lines = max_of(1, SEEN_POSITIONS / g.out[1]);
    int64_t columns = min_of(PANEL, p.depth - column), of_low = min_of(columns, max_of(0, g.low_channels - column));
    if (columns < PANEL) memset(panel, 0, lines * g.out[1] * PANEL * sizeof(float));
    for (int64_t n = first; n < last; n++) {
        Seen s = {low + n * positions * g.low_channels, up ? up + n * positions * g.up_channels : NULL,
                  padded + n * p.padded[0] * p.padded[1] * g.up_channels, group * p.group_channels};
        memset(products, 0, each * PANEL * sizeof(float));
        for (int64_t y = 0; y < g.out[0]; y += lines) {
            int64_t count = min_of(lines, g.out[0] - y), at = (n * positions + y * g.out[1]) * g.channels;
            lay_out_panel(g, p, s, column, columns, y, count, panel);
            add_products(grad + at + group * each, g.channels, each, panel, PANEL, PANEL, count * g.out[1], products);
        }
        float *to = grad_weights + group * each * p.pitch + column;
        add_scaled(weights + group * each * p.pitch + column, p.pitch, products, of_low, each,
                   beta1 + n * g.channels + group * each, to, sums + n * each);
    }
}

/* The weights that one sample's grad is multiplied with, in panels, and each position's initial values. */
typedef struct {
    float *taps, *low; /* [groups][panels][C / groups][PANEL], columns PWC1 and taps; [panels][pwc2_channels][PANEL] */
    float *taps_start, *low_start;    /* [groups][panels * PANEL]; [panels * PANEL] */
    int64_t tap_columns, low_columns; /* whole panels */
} Scaled;

/* rows: [channels][pitch], from the first column on. Panels get the rows times factor, start gets the sum of the rows
 * times constant. */
static void scale_rows(const float *rows, int64_t pitch, int64_t channels, int64_t columns, const float *factor,
                       const float *constant, float sign, float *panels, float *start) {
    for (int64_t k = 0; k < columns; k += PANEL, panels += channels * PANEL) {
        int64_t width = min_of(PANEL, columns - k);
        float sum[PANEL] = {0};
        for (int64_t c = 0; c < channels; c++) {
            const float *row = rows + c * pitch + k;
            float scale = sign > 0 ? factor[c] : 1.f - factor[c], share = sign * constant[c];
            float *to = panels + c * PANEL;
            if (width < PANEL) memset(to, 0, PANEL * sizeof(float));
#pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                to[j] = scale * row[j];
                sum[j] += share * row[j];
            }
        }
        memcpy(start + k, sum, sizeof sum);
    }
}

static void scale_weights(Geometry g, Plan p, const float *weights, const float *beta1, const float *e, Scaled s) {
    int64_t each = g.channels / g.groups, l = g.low_channels;
    for (int64_t i = 0; i < g.groups; i++)
        scale_rows(weights + i * each * p.pitch + l, p.pitch, each, p.depth - l, beta1 + i * each, e + i * each, 1.f,
                   s.taps + i * each * s.tap_columns, s.taps_start + i * s.tap_columns);
    scale_rows(weights, p.pitch, g.pwc2_channels, l, beta1, e, -1.f, s.low, s.low_start);
    for (int64_t c = g.pwc2_channels; c < g.channels; c++) s.low_start[c - g.pwc2_channels] -= e[c];
}

static inline __attribute__((always_inline)) void add_run(const float *from, int64_t stride, int64_t count, float *to,
                                                          int64_t to_stride, const int64_t length) {
    for (int64_t x = 0; x < count; x++, from += stride, to += to_stride)
#pragma omp simd
        for (int64_t c = 0; c < length; c++) to[c] += from[c];
}

/* Adds the products of one line of positions and the taps of one group, [out width][stride], to those lines of the
 * input's gradient that lie in [first, last). */
static void spread_line(Geometry g, Plan p, const float *line, int64_t stride, int64_t y, int64_t before, int64_t first,
                        int64_t last, float *grad_x) {
    for (int64_t ky = 0, tap = 0; ky < g.kernel[0]; ky++) {
        int64_t to_y = y * g.stride[0] - g.padding[0] + ky * g.dilation[0];
        for (int64_t kx = 0; kx < g.kernel[1]; line += tap_width(g, p, tap), kx++, tap++) {
            int64_t from_x = first_reaching(g, 1, kx, 0), count = first_reaching(g, 1, kx, g.width) - from_x;
            if (to_y < first || to_y >= last || count <= 0) continue;
            int64_t to_x = from_x * g.stride[1] - g.padding[1] + kx * g.dilation[1];
            float *to = grad_x + (to_y * g.width + to_x) * g.up_channels + (tap == g.centre ? 0 : before);
#define ADD(L) add_run(line + from_x * stride, stride, count, to, g.stride[1] * g.up_channels, L)
            FOR_LENGTH(tap_width(g, p, tap), ADD)
#undef ADD
        }
    }
}

/* One sample's gradients in the lines [first, last) of x and in band number `band` of `bands` of up and low. */
static void input_gradients(Geometry g, Plan p, const float *grad, const float *beta1, Scaled s, int64_t band,
                            int64_t bands, float *products, float *grad_x, float *grad_up, float *grad_low) {
    int64_t width = g.out[1], each = g.channels / g.groups, u = g.up_channels, l = g.low_channels;
    int64_t first = g.height * band / bands, last = g.height * (band + 1) / bands;
    int64_t own = g.out[0] * band / bands, own_end = g.out[0] * (band + 1) / bands;
    int64_t columns = (p.depth - l + LANES - 1) / LANES * LANES; /* whole vectors */
    int64_t reach = (g.kernel[0] - 1) * g.dilation[0], lines = max_of(1, SPREAD_POSITIONS / width);
    int64_t from = min_of(own, max_of(0, first + g.padding[0] - reach) / g.stride[0]);
    int64_t to = min_of(g.out[0], max_of(own_end, (last - 1 + g.padding[0]) / g.stride[0] + 1));
    memset(grad_x + first * g.width * u, 0, (last - first) * g.width * u * sizeof(float));
    /* Y2 is PWC2's output and X_low itself. */
    gemm(s.low_start, grad + own * width * g.channels, g.channels, (own_end - own) * width, s.low, g.pwc2_channels, l,
         grad_low + own * width * l, l);
    for (int64_t i = own * width; i < own_end * width; i++)
#pragma omp simd
        for (int64_t c = g.pwc2_channels; c < g.channels; c++)
            grad_low[i * l + c - g.pwc2_channels] += (1.f - beta1[c]) * grad[i * g.channels + c];
    /* Blocks of lines do not depend on the bands: the order of a sum must not, either. */
    for (int64_t block = from / lines * lines; block < to; block += lines) {
        int64_t end = min_of(block + lines, g.out[0]);
        for (int64_t i = 0; i < g.groups; i++) {
            gemm(s.taps_start + i * s.tap_columns, grad + block * width * g.channels + i * each, g.channels,
                 (end - block) * width, s.taps + i * each * s.tap_columns, each, columns, products, s.tap_columns);
            for (int64_t y = block; y < end; y++) {
                const float *line = products + (y - block) * width * s.tap_columns;
                if (grad_up && y >= own && y < own_end)
                    for (int64_t x = 0; x < width; x++) {
                        float *at = grad_up + (y * width + x) * u;
                        if (i == 0) memset(at, 0, u * sizeof(float));
                        add_run(line + x * s.tap_columns, 0, 1, at, 0, u);
                    }
                spread_line(g, p, line + (grad_up ? u : 0), s.tap_columns, y, i * p.group_channels, first, last, grad_x);
            }
        }
    }
}

/* total[n][c]: the sum of grad over the positions; parts: [samples * bands][channels]. */
static void add_up(Geometry g, const float *grad, int64_t bands, int threads, double *parts, double *total) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < g.samples * bands; i++) {
        int64_t first = g.out[0] * (i % bands) / bands, last = g.out[0] * (i % bands + 1) / bands;
        const float *lines = grad + i / bands * g.out[0] * g.out[1] * g.channels;
        memset(parts + i * g.channels, 0, g.channels * sizeof(double));
        for (int64_t y = first; y < last; y++)
            add_line(lines + y * g.out[1] * g.channels, g.out[1], g.channels, parts + i * g.channels);
    }
    for (int64_t i = 0; i < g.samples * g.channels; i++) {
        total[i] = 0;
        for (int64_t band = 0; band < bands; band++)
            total[i] += parts[(i / g.channels * bands + band) * g.channels + i % g.channels];
    }
}

/* grad: (N, H', W', C), dense; x, up, low, bias1, bias2 and geometry: as transform_fuse has them; weights: (C, pitch),
 * its rows before they are packed, padded with zeros; beta1: its second result. No norm, no ReLU. grad_x, grad_up (NULL
 * with up), grad_low, grad_bias1, grad_bias2: as the inputs; grad_weights: as the weights, meaningless for those that
 * copy X_low. Returns 0, or 1 without memory. */
int transform_fuse_backward(const Map *grad_map, const Map *x, const Map *up_map, const Map *low_map, const float *weights,
                            const float *beta1, const float *bias1, const float *bias2, const int64_t *geometry, int bf16,
                            int threads, Map *grad_x_map, Map *grad_up_map, Map *grad_low_map, float *grad_weights,
                            float *grad_bias1, float *grad_bias2) {
    Geometry g;
    memcpy(&g, geometry, sizeof g);
    Plan p = plan_of(g);
    int64_t samples = g.samples, positions = g.out[0] * g.out[1], each = g.channels / g.groups, l = g.low_channels;
    int64_t panels = panels_of(p.depth), bands = bands_of(g), tasks = g.groups * panels;
    int64_t parts = min_of(samples, (TASKS + tasks - 1) / tasks);
    int64_t weight_count = g.channels * p.pitch, image = p.padded[0] * p.padded[1] * g.up_channels;
    int64_t seen_room = max_of(1, SEEN_POSITIONS / g.out[1]) * g.out[1] * PANEL + each * PANEL;
    Scaled room = {.tap_columns = panels_of(p.depth - l) * PANEL, .low_columns = panels_of(l) * PANEL};
    int64_t taps_room = (g.channels + g.groups) * room.tap_columns, low_room = (g.pwc2_channels + 1) * room.low_columns;
    int64_t spread_room = max_of(1, SPREAD_POSITIONS / g.out[1]) * g.out[1] * room.tap_columns;
    int64_t scratch_room = max_of(seen_room, taps_room + low_room + spread_room) + STEP;
    float *padded = calloc(samples * image, sizeof(float)), *mean = malloc(samples * p.means * sizeof(float));
    float *scratch = malloc(threads * scratch_room * sizeof(float)), *e = malloc(samples * g.channels * sizeof(float));
    float *of_parts = calloc(max_of(1, (parts - 1) * weight_count), sizeof(float));
    double *means_parts = malloc(samples * bands * p.means * sizeof(double));
    double *sums = malloc(g.groups * panels * samples * each * sizeof(double));
    double *grad_parts = malloc(samples * bands * g.channels * sizeof(double));
    double *grad_total = calloc(samples * g.channels, sizeof(double));
    int64_t of_grad = samples * positions * g.channels, of_x = samples * g.height * g.width * g.up_channels;
    int64_t of_low = samples * positions * l, of_up = up_map ? samples * positions * g.up_channels : 0;
    float *floats = bf16 ? malloc((of_grad + of_x + 2 * (of_low + of_up)) * sizeof(float)) : NULL;
    int failed = !padded || !mean || !scratch || !e || !of_parts || !means_parts || !sums || !grad_parts || !grad_total;
    failed |= bf16 && !floats;
    if (!failed) {
        float *rooms[6] = {floats}; /* of grad, low, up, and the gradients of x, low, up */
        int64_t counts[6] = {of_grad, of_low, of_up, of_x, of_low, of_up};
        for (int i = 1; i < 6 && bf16; i++) rooms[i] = rooms[i - 1] + counts[i - 1];
        const float *grad = all_values(grad_map, bf16, of_grad, threads, rooms[0]);
        const float *low = all_values(low_map, bf16, of_low, threads, rooms[1]);
        const float *up = up_map ? all_values(up_map, bf16, of_up, threads, rooms[2]) : NULL;
        float *grad_x = place_at(grad_x_map, bf16, 0, rooms[3]), *grad_low = place_at(grad_low_map, bf16, 0, rooms[4]);
        float *grad_up = up_map ? place_at(grad_up_map, bf16, 0, rooms[5]) : NULL;
        memset(grad_weights, 0, weight_count * sizeof(float));
        see(g, p, x, bf16, 0, up, low, samples, bands, threads, padded, means_parts, mean);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (int64_t i = 0; i < parts * tasks; i++) {
            int64_t part = i / tasks, group = i / panels % g.groups, panel = i % panels;
            float *own = scratch + thread_number() * scratch_room;
            float *of_part = part ? of_parts + (part - 1) * weight_count : grad_weights;
            products_of_panel(g, p, grad, padded, up, low, weights, beta1, group, panel * PANEL, samples * part / parts,
                              samples * (part + 1) / parts, own + each * PANEL, own,
                              sums + (group * panels + panel) * samples * each, of_part);
        }
        if (bias1 || bias2) add_up(g, grad, bands, threads, grad_parts, grad_total);
        for (int64_t i = 0; i < samples * g.channels; i++) {
            int64_t n = i / g.channels, c = i % g.channels;
            double total = ((bias1 ? bias1[c] : 0.f) - (bias2 && c < g.pwc2_channels ? bias2[c] : 0.f)) * grad_total[i];
            for (int64_t panel = 0; panel < panels; panel++)
                total += sums[((c / each * panels + panel) * samples + n) * each + c % each];
            e[i] = (float)(total / (double)positions * beta1[i] * (1.f - beta1[i]));
        }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t c = 0; c < g.channels; c++) {
            float *to = grad_weights + c * p.pitch;
            double of_bias1 = 0, of_bias2 = 0;
            for (int64_t part = 1; part < parts; part++)
#pragma omp simd
                for (int64_t k = 0; k < p.depth; k++) to[k] += of_parts[(part - 1) * weight_count + c * p.pitch + k];
            for (int64_t n = 0; n < samples; n++) { /* e' times sums is e times means */
                const float *of_sample = mean + n * p.means;
                int64_t i = n * g.channels + c;
                float constant = e[i] * (float)positions;
                of_bias1 += beta1[i] * grad_total[i] + constant;
                of_bias2 += (1.f - beta1[i]) * grad_total[i] - constant;
                for (int64_t k = 0; k < l; k++) to[k] -= constant * of_sample[k];
                int64_t k = l, at = l;
                if (g.centre < 0)
                    for (; k < l + g.up_channels; k++, at++) to[k] += constant * of_sample[at];
                for (int64_t tap = 0; tap < p.taps; tap++, at += g.up_channels) {
                    int64_t skip = tap == g.centre ? 0 : c / each * p.group_channels, count = tap_width(g, p, tap);
                    for (int64_t j = 0; j < count; j++, k++) to[k] += constant * of_sample[at + skip + j];
                }
            }
            if (bias1) grad_bias1[c] = (float)of_bias1;
            if (bias2 && c < g.pwc2_channels) grad_bias2[c] = (float)of_bias2;
        }
        int64_t cuts = (threads + samples - 1) / samples; /* no more than threads need: each scales the weights */
        cuts = max_of(1, min_of(cuts, min_of(g.height, g.out[0])));
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < samples * cuts; i++) {
            int64_t n = i / cuts;
            float *own = scratch + thread_number() * scratch_room;
            Scaled s = room;
            s.taps = own;
            s.taps_start = s.taps + g.channels * s.tap_columns;
            s.low = s.taps_start + g.groups * s.tap_columns;
            s.low_start = s.low + g.pwc2_channels * s.low_columns;
            scale_weights(g, p, weights, beta1 + n * g.channels, e + n * g.channels, s);
            input_gradients(g, p, grad + n * positions * g.channels, beta1 + n * g.channels, s, i % cuts, cuts,
                            own + taps_room + low_room, grad_x + n * g.height * g.width * g.up_channels,
                            grad_up ? grad_up + n * positions * g.up_channels : NULL, grad_low + n * positions * l);
        }
        put_all(grad_x_map, bf16, of_x, threads, grad_x);
        put_all(grad_low_map, bf16, of_low, threads, grad_low);
        if (up_map) put_all(grad_up_map, bf16, of_up, threads, grad_up);
    }
    free(floats);
    free(padded);
    free(mean);
    free(scratch);
    free(e);
    free(of_parts);
    free(means_parts);
    free(sums);
    free(grad_parts);
    free(grad_total);
    return failed;
}
