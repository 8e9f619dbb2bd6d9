/* CRU's transform in blocks of tiles. Each sample's maps are copied into bfloat16 images whose rows tiles can read:
 *
 * - low and up, the inputs of PWC2 and PWC1, a row for each position, filled up with zeros to whole steps.
 * - split, GWC's padded input, the groups one after the other: the taps of a line of the window lie side by side, so that
 *   a row of the line is one run. The weights of the other groups' PWC1 at the centre are `up`'s.
 *
 * With a stride of 1 the output's lines are as long as the padded ones: a block of rows crosses from line to line, and
 * what it gives between the lines is dropped. */
#ifndef MMSCCONV_TRANSFORM_TILES_H
#define MMSCCONV_TRANSFORM_TILES_H

#include "tiles.h"
#include "transform.h"

typedef struct {
    int64_t low_steps, up_steps, line_steps, steps; /* of a panel of weights */
    int64_t pitch;                                  /* rows of low and up from one output line to the next */
    int64_t rows;                                   /* of low and up */
    int64_t low_room, up_room, group_image, split_room;
    int flat;                                       /* blocks cross from line to line */
} TilePlan;

static inline TilePlan tile_plan(Geometry g, Plan p) {
    TilePlan t = {.low_steps = steps_of(g.low_channels), .up_steps = steps_of(g.up_channels),
                  .line_steps = steps_of(g.kernel[1] * p.group_channels), .flat = g.stride[0] == 1 && g.stride[1] == 1};
    t.steps = t.low_steps + t.up_steps + g.kernel[0] * t.line_steps;
    t.pitch = t.flat ? p.padded[1] : g.out[1];
    t.rows = g.out[0] * t.pitch;
    t.low_room = (t.rows + TILE_BLOCK) * t.low_steps * TILE_DEPTH;
    t.up_room = (t.rows + TILE_BLOCK) * t.up_steps * TILE_DEPTH;
    t.group_image = p.padded[0] * p.padded[1] * p.group_channels;
    /* A block's rows behind the last position, and a run's steps behind its last tap. */
    t.split_room = whole_lines(g.groups * t.group_image + TILE_BLOCK * g.stride[1] * p.group_channels +
                               t.line_steps * TILE_DEPTH);
    return t;
}

/* One sample's images. */
typedef struct {
    uint16_t *low, *up, *split;
} Images;

static inline Images images_of(TilePlan t, uint16_t *room, int64_t k) {
    uint16_t *low = room + k * (t.low_room + t.up_room + t.split_room);
    return (Images){low, low + t.low_room, low + t.low_room + t.up_room};
}

/* out = what is left of the weights when they are rounded to bfloat16. */
static inline void rests_of(const float *weights, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i += PANEL) {
        uint16_t rounded[PANEL];
        float wide[PANEL];
        narrow(weights + i, PANEL, rounded);
        widen(rounded, PANEL, wide);
        for (int j = 0; j < PANEL; j++) out[i + j] = isfinite(wide[j]) ? weights[i + j] - wide[j] : 0.f;
    }
}

/* A panel of transform's weights, in runs: PWC2, PWC1 with the tap at the centre, the lines of the window. The sum of
 * PWC1 and the tap at the centre has more digits than bfloat16: the tap's own place in its line has the rest. */
static inline void transform_steps(Geometry g, Plan p, const float *panel, int64_t index, uint16_t *out, float *line) {
    int64_t each = p.group_channels, taps_before = max_of(g.centre, 0);
    const float *before = panel + g.low_channels * PANEL, *up = before + taps_before * each * PANEL;
    const float *after = up + g.up_channels * PANEL;
    out = weights_in_steps(panel, g.low_channels, out);
    out = weights_in_steps(up, g.up_channels, out);
    for (int64_t ky = 0; ky < g.kernel[0]; ky++) {
        for (int64_t kx = 0; kx < g.kernel[1]; kx++) {
            int64_t tap = ky * g.kernel[1] + kx, values = each * PANEL;
            if (tap == g.centre)
                rests_of(up + index / p.panels_each * values, values, line + kx * values);
            else if (tap < taps_before)
                memcpy(line + kx * values, before + tap * values, values * sizeof(float));
            else
                memcpy(line + kx * values, after + (tap - taps_before - (g.centre >= 0)) * values, values * sizeof(float));
        }
        out = weights_in_steps(line, g.kernel[1] * each, out);
    }
}

/* Zeros behind each image, which a block's last rows and a run's last steps read. */
static inline void end_images(Geometry g, TilePlan t, Images to) {
    int64_t low = t.rows * t.low_steps * TILE_DEPTH, up = t.rows * t.up_steps * TILE_DEPTH, split = g.groups * t.group_image;
    memset(to.low + low, 0, (t.low_room - low) * sizeof(uint16_t));
    memset(to.up + up, 0, (t.up_room - up) * sizeof(uint16_t));
    memset(to.split + split, 0, (t.split_room - split) * sizeof(uint16_t));
}

/* Copies output line y of a map whose rows hold `channels` values, and adds it to the sums. Returns whether its values
 * are finite. */
static inline int take_line(Geometry g, TilePlan t, const uint16_t *line, int64_t y, int64_t channels, int64_t steps,
                            uint16_t *image, float *floats, double *sums) {
    int64_t row = steps * TILE_DEPTH;
    image += y * t.pitch * row;
    for (int64_t x = 0; x < g.out[1]; x++) {
        memcpy(image + x * row, line + x * channels, channels * sizeof(uint16_t));
        memset(image + x * row + channels, 0, (row - channels) * sizeof(uint16_t));
    }
    memset(image + g.out[1] * row, 0, (t.pitch - g.out[1]) * row * sizeof(uint16_t));
    if (sums) {
        widen(line, g.out[1] * channels, floats);
        add_line(floats, g.out[1], channels, sums);
    }
    return all_finite(line, g.out[1] * channels);
}

/* Copies the lines of one of `bands` bands of a sample's maps into its images and sums them up as `see` does; `floats`
 * holds a padded line of x, and its padding is zero. up is NULL if there is a centre. Returns whether all values are
 * finite. */
static inline int take_band(Geometry g, Plan p, TilePlan t, const uint16_t *x, const uint16_t *up, const uint16_t *low,
                            int64_t band, int64_t bands, Images to, float *padded_line, float *floats, double *sums) {
    int64_t u = g.up_channels, l = g.low_channels, each = p.group_channels, left = g.padding[1];
    int64_t columns = min_of(g.width, p.padded[1] - left);
    int finite = 1;
    if (band == 0) end_images(g, t, to);
    memset(sums, 0, p.means * sizeof(double));
    for (int64_t y = g.out[0] * band / bands; y < g.out[0] * (band + 1) / bands; y++) {
        finite &= take_line(g, t, low + y * g.out[1] * l, y, l, t.low_steps, to.low, floats, sums);
        if (up)
            finite &= take_line(g, t, up + y * g.out[1] * u, y, u, t.up_steps, to.up, floats, sums + l);
        else /* the position of a centre is its output's, and its means are those of the tap */
            finite &= take_line(g, t, x + y * g.width * u, y, u, t.up_steps, to.up, floats, NULL);
    }
    /* Lines of the padded image; those above and below the input belong to the first and the last band. */
    int64_t first = band ? g.height * band / bands : -g.padding[0], end = p.padded[0] - g.padding[0];
    int64_t last = band + 1 < bands ? min_of(g.height * (band + 1) / bands, end) : end;
    for (int64_t y = first; y < last; y++) {
        for (int64_t group = 0; group < g.groups; group++)
            memset(to.split + group * t.group_image + (y + g.padding[0]) * p.padded[1] * each, 0,
                   p.padded[1] * each * sizeof(uint16_t));
        if (y < 0 || y >= g.height || columns <= 0) continue;
        const uint16_t *from = x + y * g.width * u;
        finite &= all_finite(from, g.width * u);
        widen(from, columns * u, padded_line + left * u);
        add_taps(g, padded_line + left * u, y, sums + l + (up ? u : 0));
        for (int64_t group = 0; group < g.groups; group++) {
            uint16_t *line = to.split + group * t.group_image + ((y + g.padding[0]) * p.padded[1] + left) * each;
            for (int64_t i = 0; i < columns; i++)
                memcpy(line + i * each, from + i * u + group * each, each * sizeof(uint16_t));
        }
    }
    return finite;
}

/* As output_tile does it, for one row of a block: out = (Y2 * ratio + Y1) * factor + offset. */
static inline void finish_row(const float *y1, const float *y2, Ends e, int relu, int64_t columns, uint16_t *out) {
    float z[TILE_BLOCK];
#pragma omp simd
    for (int j = 0; j < TILE_BLOCK; j++) {
        float v = (y2[j] * e.ratio[j] + y1[j]) * e.factor[j] + e.offset[j];
        z[j] = relu && v < 0 ? 0.f : v; /* a NaN stays one */
    }
    if (columns == TILE_BLOCK)
        narrow(z, TILE_BLOCK, out);
    else
        narrow(z, columns, out);
}

/* The output rows [first, last) of one sample in the columns of one panel. */
static inline void band_in_tiles(Geometry g, Plan p, TilePlan t, Images in, const uint16_t *steps, int64_t index, Ends e,
                                 int relu, int64_t first, int64_t last, uint16_t *out) {
    int64_t group = index / p.panels_each, in_group = index % p.panels_each * PANEL, each = g.channels / g.groups;
    int64_t columns = min_of(PANEL, each - in_group), at = index * PANEL, c = group * each + in_group;
    float y1[TILE_BLOCK * TILE_BLOCK], y2[TILE_BLOCK * TILE_BLOCK];
    Ends ends = {e.ratio + at, e.factor + at, e.offset + at};
    const uint16_t *split = in.split + group * t.group_image;
    int64_t run = g.stride[1] * p.group_channels, lines = t.flat ? 1 : last - first;
    Run runs[1 + g.kernel[0]];
    for (int64_t line = 0; line < lines; line++) {
        int64_t begin = (first + line) * t.pitch, end = (t.flat ? last - 1 : first + line) * t.pitch + g.out[1];
        for (int64_t row = begin; row < end; row += TILE_BLOCK) {
            int64_t rows = min_of(TILE_BLOCK, end - row), y = row / t.pitch, x = row % t.pitch;
            Run low = {in.low + row * t.low_steps * TILE_DEPTH, t.low_steps * TILE_DEPTH, t.low_steps};
            runs[0] = (Run){in.up + row * t.up_steps * TILE_DEPTH, t.up_steps * TILE_DEPTH, t.up_steps};
            for (int64_t ky = 0; ky < g.kernel[0]; ky++) {
                int64_t corner = (y * g.stride[0] + ky * g.dilation[0]) * p.padded[1] + x * g.stride[1];
                runs[1 + ky] = (Run){split + corner * p.group_channels, run, t.line_steps};
            }
            tile_products(&low, 1, steps, rows, columns, y2);
            tile_products(runs, 1 + (int)g.kernel[0], steps + t.low_steps * TILE_STEP, rows, columns, y1);
            for (int64_t r = 0; r < rows; r++) {
                if (x < g.out[1])
                    finish_row(y1 + r * TILE_BLOCK, y2 + r * TILE_BLOCK, ends, relu, columns,
                               out + (y * g.out[1] + x) * g.channels + c);
                if (++x == t.pitch) x = 0, y++;
            }
        }
    }
}

#endif
