/* The weights of convolutions in the order in which the kernels read them: rows (J, K), one per output channel, and
 * panels of rows, [panel][K][PANEL]. */
#include "gemm.h"
#include "kernels.h"

/* The weights of a CRU's transform. */
typedef struct {
    const float *gwc;                      /* (C, taps, u / groups), with the strides below */
    int64_t gwc_row, gwc_tap, gwc_channel;
    const float *pwc1, *pwc2;              /* (C, u), (pwc2_channels, l) */
    int64_t channels, u, l, pwc2_channels, groups, taps, centre;
} Weights;

/* A row of the transform: the weights of PWC2, of GWC's taps before the centre, of PWC1 with the tap at the centre, and
 * of GWC's other taps. Without a centre (-1) all taps come after PWC1. */
static void fill_row(const Weights *w, int64_t c, float *row) {
    int64_t each = w->u / w->groups, group = c / (w->channels / w->groups);
    const float *gwc = w->gwc + c * w->gwc_row;
    if (c < w->pwc2_channels) {
        memcpy(row, w->pwc2 + c * w->l, w->l * sizeof(float));
    } else { /* X_low itself is the rest of Y2 */
        memset(row, 0, w->l * sizeof(float));
        row[c - w->pwc2_channels] = 1.f;
    }
    row += w->l;
    for (int64_t tap = 0; tap < w->centre; tap++)
        for (int64_t i = 0; i < each; i++) *row++ = gwc[tap * w->gwc_tap + i * w->gwc_channel];
    memcpy(row, w->pwc1 + c * w->u, w->u * sizeof(float));
    if (w->centre >= 0)
        for (int64_t i = 0; i < each; i++) row[group * each + i] += gwc[w->centre * w->gwc_tap + i * w->gwc_channel];
    row += w->u;
    for (int64_t tap = w->centre + 1; tap < w->taps; tap++)
        for (int64_t i = 0; i < each; i++) *row++ = gwc[tap * w->gwc_tap + i * w->gwc_channel];
}

static Weights weights_of(const float *gwc, const float *pwc1, const float *pwc2, const int64_t *numbers) {
    return (Weights){gwc,        numbers[0], numbers[1], numbers[2], pwc1,       pwc2,
                     numbers[3], numbers[4], numbers[5], numbers[6], numbers[7], numbers[8], numbers[9]};
}

static int64_t depth_of(const Weights *w) { return w->l + w->u + (w->taps - (w->centre >= 0)) * (w->u / w->groups); }

/* out[k][r] = rows[r][k] of up to PANEL rows, and 0 in the columns beyond them. */
static void to_panel(const float *rows, int64_t row_stride, int64_t k_stride, int64_t count, int64_t depth,
                     float *out) {
    for (int64_t k = 0; k < depth; k++) {
        for (int64_t r = 0; r < count; r++) out[k * PANEL + r] = rows[r * row_stride + k * k_stride];
        for (int64_t r = count; r < PANEL; r++) out[k * PANEL + r] = 0.f;
    }
}

/* Packs weights (rows, depth) with any strides; two groups never share a panel. */
int pack(const float *weights, int64_t row_stride, int64_t k_stride, int64_t rows, int64_t depth, int64_t groups,
         float *out) {
    int64_t each = rows / groups, panels = panels_of(each);
    for (int64_t i = 0; i < groups * panels; i++) {
        int64_t first = i % panels * PANEL;
        to_panel(weights + (i / panels * each + first) * row_stride, row_stride, k_stride, min_of(PANEL, each - first),
                 depth, out + i * depth * PANEL);
    }
    return 0;
}

/* gwc, pwc1, pwc2: a CRU's; numbers: gwc's three strides, then C to centre as in Weights. out: in panels. Returns 0,
 * or 1 without memory. */
int pack_transform(const float *gwc, const float *pwc1, const float *pwc2, const int64_t *numbers, int threads,
                   float *out) {
    Weights w = weights_of(gwc, pwc1, pwc2, numbers);
    int64_t depth = depth_of(&w), each = w.channels / w.groups, panels = panels_of(each);
    float *scratch = malloc(threads * PANEL * depth * sizeof(float));
    if (!scratch) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < w.groups * panels; i++) {
        float *rows = scratch + thread_number() * PANEL * depth;
        int64_t first = i % panels * PANEL, count = min_of(PANEL, each - first);
        for (int64_t r = 0; r < count; r++) fill_row(&w, i / panels * each + first + r, rows + r * depth);
        to_panel(rows, depth, 1, count, depth, out + i * depth * PANEL);
    }
    free(scratch);
    return 0;
}

/* The same weights as rows, each padded with zeros to `pitch`: out (C, pitch). */
int transform_rows(const float *gwc, const float *pwc1, const float *pwc2, const int64_t *numbers, int64_t pitch,
                   int threads, float *out) {
    Weights w = weights_of(gwc, pwc1, pwc2, numbers);
    int64_t depth = depth_of(&w);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < w.channels; c++) {
        fill_row(&w, c, out + c * pitch);
        memset(out + c * pitch + depth, 0, (pitch - depth) * sizeof(float));
    }
    return 0;
}

/* Splits gradients of transform_rows, (C, pitch), into those of each weight: gwc (C, taps, u / groups), pwc1, pwc2. */
int weights_of_rows(const float *rows, int64_t pitch, const int64_t *numbers, int threads, float *gwc, float *pwc1,
                    float *pwc2) {
    Weights w = weights_of(NULL, NULL, NULL, numbers);
    int64_t each = w.u / w.groups, before = max_of(w.centre, 0) * each, after = (w.centre + 1) * each;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < w.channels; c++) {
        const float *row = rows + c * pitch, *both = row + w.l + before;
        float *taps = gwc + c * w.taps * each;
        if (c < w.pwc2_channels) memcpy(pwc2 + c * w.l, row, w.l * sizeof(float));
        memcpy(taps, row + w.l, before * sizeof(float));
        memcpy(pwc1 + c * w.u, both, w.u * sizeof(float));
        if (w.centre >= 0) memcpy(taps + before, both + c / (w.channels / w.groups) * each, each * sizeof(float));
        memcpy(taps + after, both + w.u, (w.taps * each - after) * sizeof(float));
    }
    return 0;
}
