/* Shared by CRU's transform and its backward: shapes, GWC's padded input image, and means of the convolutions' inputs. */
#ifndef MMSCCONV_TRANSFORM_H
#define MMSCCONV_TRANSFORM_H

#include "gemm.h"
#include "maps.h"

typedef struct {
    int64_t samples, height, width, up_channels, low_channels, channels, pwc2_channels, groups;
    int64_t kernel[2], stride[2], padding[2], dilation[2], out[2]; /* vertical, horizontal */
    int64_t centre; /* the tap that includes PWC1, or -1 if PWC1 has an input of its own */
} Geometry;

/* Sizes of a panel of weights and of a row of means of the inputs, in the order PWC2, PWC1, GWC. At the centre, GWC and
 * PWC1 together are one tap that sees all channels. */
typedef struct {
    int64_t taps, depth, pitch, means;   /* depth: of a panel; pitch: of a row of weights; means: of a row */
    int64_t group_channels, panels_each; /* of a group: the channels that its taps see, its panels */
    int64_t padded[2];
} Plan;

static inline Plan plan_of(Geometry g) {
    int64_t taps = g.kernel[0] * g.kernel[1], each = g.up_channels / g.groups;
    int64_t depth = g.low_channels + g.up_channels + (taps - (g.centre >= 0)) * each;
    int64_t means = g.low_channels + (taps + (g.centre < 0)) * g.up_channels;
    Plan p = {taps, depth, panels_of(depth) * PANEL, means, each, panels_of(g.channels / g.groups), {0}};
    for (int i = 0; i < 2; i++)
        p.padded[i] = (g.out[i] - 1) * g.stride[i] + (g.kernel[i] - 1) * g.dilation[i] + 1;
    return p;
}

/* The final affine map of one sample's panels: out = (Y2 * ratio + Y1) * factor + offset, [panels * PANEL] each. */
typedef struct {
    float *ratio, *factor, *offset;
} Ends;

static inline Ends at_sample(Ends e, int64_t n, int64_t length) {
    return (Ends){e.ratio + n * length, e.factor + n * length, e.offset + n * length};
}

/* The sum of `rows` vectors that lie `stride` apart: in float, as they are at most one line of an image. */
static inline Vec sum_of_rows(const float *x, int64_t stride, int64_t rows, int64_t width) {
    Vec even = {0}, odd = {0}; /* two chains of additions */
    int64_t r = 0;
    if (width < LANES) {
        float line[LANES] = {0};
        for (; r < rows; r++)
            for (int64_t i = 0; i < width; i++) line[i] += x[r * stride + i];
        return *(Vec *)line;
    }
    for (; r + 2 <= rows; r += 2) {
        even += *(const Vec *)(x + r * stride);
        odd += *(const Vec *)(x + (r + 1) * stride);
    }
    return r < rows ? even + *(const Vec *)(x + r * stride) + odd : even + odd;
}

static inline void add_to(double *sums, Vec line, int64_t width) {
    for (int64_t i = 0; i < min_of(LANES, width); i++) sums[i] += line[i];
}

static inline void add_line(const float *x, int64_t positions, int64_t channels, double *sums) {
    for (int64_t c = 0; c < channels; c += LANES)
        add_to(sums + c, sum_of_rows(x + c, channels, positions, channels - c), channels - c);
}

/* Along axis i, the first output position whose tap number `tap` sees an input position >= `position`. */
static inline int64_t first_reaching(Geometry g, int i, int64_t tap, int64_t position) {
    int64_t distance = position + g.padding[i] - tap * g.dilation[i];
    return distance <= 0 ? 0 : min_of(g.out[i], (distance + g.stride[i] - 1) / g.stride[i]);
}

/* Adds input line y, which stands behind its padding in a padded line, to the sums of each tap's inputs,
 * [taps][up_channels]. */
static inline void add_taps(Geometry g, const float *line, int64_t y, double *sums) {
    int64_t u = g.up_channels;
    for (int64_t kx = 0; kx < g.kernel[1]; kx++) {
        int64_t from = first_reaching(g, 1, kx, 0), to = first_reaching(g, 1, kx, g.width);
        const float *seen = line + (from * g.stride[1] + kx * g.dilation[1] - g.padding[1]) * u;
        for (int64_t c = 0; c < u && from < to; c += LANES) {
            Vec sum = sum_of_rows(seen + c, g.stride[1] * u, to - from, u - c);
            for (int64_t ky = 0; ky < g.kernel[0]; ky++) {
                int64_t top = y + g.padding[0] - ky * g.dilation[0];
                if (top >= 0 && top % g.stride[0] == 0 && top / g.stride[0] < g.out[0])
                    add_to(sums + (ky * g.kernel[1] + kx) * u + c, sum, u - c);
            }
        }
    }
}

/* Copies one sample's input rows [first, last), which begin at value `start` of x, into the padded image, and adds them
 * to the sums of each tap's inputs. */
static inline void take_rows(Geometry g, Plan p, const Map *x, int bf16, int64_t start, int64_t first, int64_t last,
                             float *padded, double *sums) {
    int64_t u = g.up_channels, left = g.padding[1], columns = min_of(g.width, p.padded[1] - left);
    for (int64_t y = first; y < min_of(last, p.padded[0] - g.padding[0]); y++) {
        float *row = padded + ((y + g.padding[0]) * p.padded[1] + left) * u;
        int64_t at = start + y * g.width * u;
        if (columns > 0) {
            if (bf16)
                widen((const uint16_t *)x + at, columns * u, row);
            else
                memcpy(row, (const float *)x + at, columns * u * sizeof(float));
        }
        add_taps(g, row, y, sums);
    }
}

/* The means over the output's positions, [count][means], from the bands' sums, [count * bands][means]. */
static inline void means_of_bands(Geometry g, Plan p, int64_t count, int64_t bands, int threads, const double *parts,
                                  float *mean) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < count; k++)
        for (int64_t i = 0; i < p.means; i++) {
            double total = 0;
            for (int64_t band = 0; band < bands; band++) total += parts[(k * bands + band) * p.means + i];
            mean[k * p.means + i] = (float)(total / (double)(g.out[0] * g.out[1]));
        }
}

/* Writes `count` samples' padded images, from sample n of x on, and the means over the output's positions of the inputs
 * of PWC2, PWC1 and each tap, [count][means]; up NULL if there is a centre; parts: [count * bands][means]. up and low:
 * those samples alone, as floats. */
static inline void see(Geometry g, Plan p, const Map *x, int bf16, int64_t n, const float *up, const float *low,
                       int64_t count, int64_t bands, int threads, float *padded, double *parts, float *mean) {
    int64_t positions = g.out[0] * g.out[1], image = p.padded[0] * p.padded[1] * g.up_channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count * bands; i++) {
        int64_t k = i / bands, band = i % bands;
        double *sums = parts + i * p.means;
        memset(sums, 0, p.means * sizeof(double));
        for (int64_t y = g.out[0] * band / bands; y < g.out[0] * (band + 1) / bands; y++) {
            int64_t at = k * positions + y * g.out[1];
            add_line(low + at * g.low_channels, g.out[1], g.low_channels, sums);
            if (up) add_line(up + at * g.up_channels, g.out[1], g.up_channels, sums + g.low_channels);
        }
        take_rows(g, p, x, bf16, (n + k) * g.height * g.width * g.up_channels, g.height * band / bands,
                  g.height * (band + 1) / bands, padded + k * image, sums + g.low_channels + (up ? g.up_channels : 0));
    }
    means_of_bands(g, p, count, bands, threads, parts, mean);
}

/* Number of bands of lines that an image is cut into, whatever the number of threads. */
static inline int64_t bands_of(Geometry g) {
    return max_of(1, min_of(g.out[0], g.out[0] * g.out[1] * g.channels / CHUNK_VALUES));
}

#endif
