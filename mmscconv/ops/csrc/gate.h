/* SRU's arithmetic over chunks of positions, Eq. 1-4: statistics, then gate and cross reconstruction; and a backward
 * that recomputes the gate from X.
 *
 * scale and shift are GN's with the weights of Eq. 2 folded in: the logit of Eq. 3 is
 * scale * (x - mean) * rstd + shift. Channel c pairs with channel c + C/2. */
#ifndef MMSCCONV_GATE_H
#define MMSCCONV_GATE_H

#include "rows.h"

#define RUN 512        /* NCHW: positions */
#define CHANNEL_RUN 32 /* channels last */
#define PAIR_RUN 16    /* of each half: values of both fill the registers */

typedef struct {
    int64_t groups;
    float threshold; /* of the logit */
    int hard;
} Gate;

/* Input and output of one sample's tasks. */
typedef struct {
    double *sum, *product;             /* [chunks][C] each: a chunk's part of two sums per channel */
    float *mean, *rstd, *slope, *shift; /* [C]: the logit is (x - mean) * slope + shift */
    float *mean_dl, *mean_dlx;         /* [C]: over the group, of dl * scale and of dl * scale * xhat */
} Sample;

static inline Sample *make_samples(Shape s, int64_t count) {
    int64_t sums = chunk_count(s) * s.channels, c = s.channels;
    Sample *all = malloc(count * sizeof(Sample));
    double *d = malloc(count * (2 * sums * sizeof(double) + 6 * c * sizeof(float)));
    if (!all || !d) {
        free(all);
        free(d);
        return NULL;
    }
    float *f = (float *)(d + count * 2 * sums);
    for (int64_t i = 0; i < count; i++, d += 2 * sums, f += 6 * c)
        all[i] = (Sample){d, d + sums, f, f + c, f + 2 * c, f + 3 * c, f + 4 * c, f + 5 * c};
    return all;
}

static inline void free_samples(Sample *all) {
    free(all[0].sum);
    free(all);
}

static inline Sample at_channel(Sample t, int64_t c) {
    t.mean += c, t.rstd += c, t.slope += c, t.shift += c, t.mean_dl += c, t.mean_dlx += c;
    return t;
}

static inline void add_moments(Shape s, const float *x, int64_t first, int64_t last, double *sum, double *square) {
    memset(sum, 0, s.channels * sizeof(double));
    memset(square, 0, s.channels * sizeof(double));
    if (s.channels_last) {
        moments_of_rows(x + first * s.channels, s.channels, last - first, s.channels, sum, square);
        return;
    }
    for (int64_t c = 0; c < s.channels; c++) {
        double total = 0, squares = 0;
#pragma omp simd reduction(+ : total, squares)
        for (int64_t i = c * s.positions + first; i < c * s.positions + last; i++) {
            double v = x[i];
            total += v;
            squares += v * v;
        }
        sum[c] = total;
        square[c] = squares;
    }
}

static inline void finish_moments(Shape s, Gate g, double eps, Sample t, float *mean, float *rstd) {
    int64_t per_group = s.channels / g.groups;
    double count = (double)(per_group * s.positions);
    for (int64_t i = 0; i < g.groups; i++) {
        double total = 0, squares = 0;
        for (int64_t c = i * per_group; c < (i + 1) * per_group; c++) {
            total += over_chunks(s, t.sum, c);
            squares += over_chunks(s, t.product, c);
        }
        double mu = total / count, variance = squares / count - mu * mu;
        mean[i] = (float)mu;
        rstd[i] = (float)(1 / sqrt((variance < 0 ? 0 : variance) + eps)); /* a NaN stays one */
    }
}

static inline void spread(Shape s, Gate g, const float *scale, const float *shift, const float *mean, const float *rstd,
                   Sample t) {
    for (int64_t c = 0; c < s.channels; c++) {
        int64_t group = c / (s.channels / g.groups);
        t.mean[c] = mean[group];
        t.rstd[c] = rstd[group];
        t.slope[c] = scale[c] * rstd[group];
        t.shift[c] = shift[c];
    }
}

static inline float logit_of(float x, Sample t, int64_t c) { return (x - t.mean[c]) * t.slope[c] + t.shift[c]; }

/* The parts of a value that stay in its own half of the channels, and that cross to the other half: X1 and X2 of Eq. 4.
 * Products also where a mask is 0, so that infinity and NaN stay seen; choices of a product would not be vectorized. */
static inline float own_part(float x, float logit, Gate g) {
    float below = g.hard ? 0.f : sigmoid_of(logit);
    return x * (logit > g.threshold ? 1.f : below);
}

static inline float cross_part(float x, float logit, Gate g) {
    float below = g.hard ? 1.f : sigmoid_of(logit);
    return x * (logit > g.threshold ? 0.f : below);
}

/* In the runs, `vary` is 1 if successive values belong to successive channels and 0 within one channel: a constant at
 * each call, so that the compiler makes two loops. */
static inline void gate_run(const float *restrict a, const float *restrict b, float *restrict out_a,
                            float *restrict out_b, int64_t length, Sample t, int64_t half, Gate g, const int vary) {
#pragma omp simd
    for (int64_t i = 0; i < length; i++) {
        int64_t c = vary ? i : 0;
        float logit_a = logit_of(a[i], t, c), logit_b = logit_of(b[i], t, c + half);
        out_a[i] = own_part(a[i], logit_a, g) + cross_part(b[i], logit_b, g);
        out_b[i] = own_part(b[i], logit_b, g) + cross_part(a[i], logit_a, g);
    }
}

/* Channels last, whole rows of 16 values: both halves fill a vector of AVX-512, where one of 8 values fills half. */
static inline void gate_rows_of_16(const float *restrict x, int64_t rows, Sample t, Gate g, float *restrict out) {
    for (int64_t p = 0; p < rows; p++, x += 16, out += 16) {
        float crossing[16];
#pragma omp simd
        for (int c = 0; c < 16; c++) {
            float logit = logit_of(x[c], t, c);
            out[c] = own_part(x[c], logit, g);
            crossing[c] = cross_part(x[c], logit, g);
        }
#pragma omp simd
        for (int c = 0; c < 8; c++) out[c] += crossing[c + 8];
#pragma omp simd
        for (int c = 8; c < 16; c++) out[c] += crossing[c - 8];
    }
}

static inline void gate_chunk(Shape s, Gate g, const float *x, int64_t first, int64_t last, Sample t, float *out) {
    int64_t half = s.channels / 2, far = half * s.positions;
    if (s.channels_last && s.channels == 16)
        gate_rows_of_16(x + first * 16, last - first, t, g, out + first * 16);
    else if (s.channels_last)
        for (int64_t i = first * s.channels; i < last * s.channels; i += s.channels)
            gate_run(x + i, x + i + half, out + i, out + i + half, half, t, half, g, 1);
    else
        for (int64_t c = 0, i = first; c < half; c++, i += s.positions)
            gate_run(x + i, x + i + far, out + i, out + i + far, last - first, at_channel(t, c), half, g, 0);
}

/* dl, the gradient of the logit: only values that the soft gate splits have one. */
static inline float logit_grad(float x, float logit, float upstream, Gate g) {
    float w = sigmoid_of(logit);
    return g.hard || logit > g.threshold ? 0.f : w * (1.f - w) * x * upstream;
}

/* dl and dl * xhat of a run. Their sums in double are separate: they would halve the vector width of this loop. */
static inline void logit_grads_run(const float *x, const float *own, const float *other, int64_t length, Sample t, Gate g,
                                   float *restrict dl, float *restrict dlx) {
#pragma omp simd
    for (int64_t i = 0; i < length; i++) {
        dl[i] = logit_grad(x[i], logit_of(x[i], t, 0), own[i] + other[i], g);
        dlx[i] = dl[i] * ((x[i] - t.mean[0]) * t.rstd[0]);
    }
}

/* Channels last: the sums of dl and of dl * xhat over `rows` positions in `width` channels; in float, as they cover at
 * most one chunk. If the width is a constant, sums and parameters of the channels stay in registers. */
static inline __attribute__((always_inline)) void add_logit_grads(const float *x, const float *own, const float *other,
                                                                  int64_t rows, int64_t stride, Sample t, Gate g,
                                                                  double *sum, double *product, const int64_t width) {
    float dls[CHANNEL_RUN] = {0}, dlxs[CHANNEL_RUN] = {0};
    for (int64_t p = 0; p < rows; p++, x += stride, own += stride, other += stride)
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            float dl = logit_grad(x[c], logit_of(x[c], t, c), own[c] + other[c], g);
            dls[c] += dl;
            dlxs[c] += dl * ((x[c] - t.mean[c]) * t.rstd[c]);
        }
    for (int64_t c = 0; c < width; c++) {
        sum[c] += dls[c];
        product[c] += dlxs[c];
    }
}

/* The gradient sums of the channels [from, from + half), whose partners lie `over` channels further. */
static inline void add_grad_sums_of_half(Shape s, Gate g, const float *x, const float *grad, int64_t first, int64_t last,
                                         Sample t, int64_t from, int64_t over, double *sum, double *product) {
    int64_t half = s.channels / 2;
    float dl[RUN], dlx[RUN];
    if (s.channels_last) {
        for (int64_t c = from; c < from + half; c += CHANNEL_RUN) {
            int64_t width = min_of(CHANNEL_RUN, from + half - c), i = first * s.channels + c;
            if (width == CHANNEL_RUN)
                add_logit_grads(x + i, grad + i, grad + i + over, last - first, s.channels, at_channel(t, c), g, sum + c,
                                product + c, CHANNEL_RUN);
            else
                add_logit_grads(x + i, grad + i, grad + i + over, last - first, s.channels, at_channel(t, c), g, sum + c,
                                product + c, width);
        }
        return;
    }
    for (int64_t c = from; c < from + half; c++) {
        double total = 0, products = 0;
        for (int64_t p = first; p < last; p += RUN) {
            int64_t length = min_of(RUN, last - p), i = c * s.positions + p;
            logit_grads_run(x + i, grad + i, grad + i + over * s.positions, length, at_channel(t, c), g, dl, dlx);
#pragma omp simd reduction(+ : total, products)
            for (int64_t k = 0; k < length; k++) {
                total += dl[k];
                products += dlx[k];
            }
        }
        sum[c] += total;
        product[c] += products;
    }
}

/* Adds the sums of dl and of dl * xhat per channel to `sum` and `product`, which the caller has set to 0. */
static inline void add_grad_sums(Shape s, Gate g, const float *x, const float *grad, int64_t first, int64_t last, Sample t,
                          double *sum, double *product) {
    int64_t half = s.channels / 2;
    add_grad_sums_of_half(s, g, x, grad, first, last, t, 0, half, sum, product);
    add_grad_sums_of_half(s, g, x, grad, first, last, t, half, -half, sum, product);
}

static inline void finish_grad_sums(Shape s, Gate g, const float *scale, Sample t, double *grad_scale, double *grad_shift) {
    int64_t per_group = s.channels / g.groups;
    double count = (double)(per_group * s.positions);
    for (int64_t i = 0; i < g.groups; i++) {
        double dl = 0, dlx = 0;
        for (int64_t c = i * per_group; c < (i + 1) * per_group; c++) {
            double total = over_chunks(s, t.sum, c), products = over_chunks(s, t.product, c);
            grad_shift[c] += total;
            grad_scale[c] += products;
            dl += total * scale[c];
            dlx += products * scale[c];
        }
        for (int64_t c = i * per_group; c < (i + 1) * per_group; c++) {
            t.mean_dl[c] = (float)(dl / count);
            t.mean_dlx[c] = (float)(dlx / count);
        }
    }
}

/* A value's gradient directly through the gate. */
static inline float direct_grad(float logit, float own, float other, Gate g) {
    float below = g.hard ? other : sigmoid_of(logit) * (own + other);
    return logit > g.threshold ? own : below;
}

/* A value's gradient through the gate and through GN. `slope` is scale * rstd. */
static inline float input_grad(float x, float own, float other, Sample t, int64_t c, Gate g) {
    float logit = logit_of(x, t, c), xhat = (x - t.mean[c]) * t.rstd[c];
    float through_own_logit = logit_grad(x, logit, own + other, g) * t.slope[c];
    return direct_grad(logit, own, other, g) + through_own_logit - t.rstd[c] * (t.mean_dl[c] + xhat * t.mean_dlx[c]);
}

static inline void grad_run(const float *restrict a, const float *restrict b, const float *restrict grad_a,
                            const float *restrict grad_b, float *restrict out_a, float *restrict out_b, int64_t length,
                            Sample t, int64_t half, Gate g, const int vary) {
#pragma omp simd
    for (int64_t i = 0; i < length; i++) {
        int64_t c = vary ? i : 0;
        out_a[i] = input_grad(a[i], grad_a[i], grad_b[i], t, c, g);
        out_b[i] = input_grad(b[i], grad_b[i], grad_a[i], t, c + half, g);
    }
}

static inline void grad_chunk(Shape s, Gate g, const float *x, const float *grad, int64_t first, int64_t last, Sample t,
                       float *out) {
    int64_t half = s.channels / 2, far = half * s.positions;
    if (s.channels_last)
        for (int64_t i = first * s.channels; i < last * s.channels; i += s.channels)
            grad_run(x + i, x + i + half, grad + i, grad + i + half, out + i, out + i + half, half, t, half, g, 1);
    else
        for (int64_t c = 0, i = first; c < half; c++, i += s.positions)
            grad_run(x + i, x + i + far, grad + i, grad + i + far, out + i, out + i + far, last - first,
                     at_channel(t, c), half, g, 0);
}

/* Channels last, both halves of `width` channels over `rows` positions, `stride` apart: writes X^w, adds to the sums of
 * dl and of dl * xhat, [2][half], and writes X's gradient without the means over the groups. These means follow from the
 * sums: finish_grads subtracts them. */
static inline __attribute__((always_inline)) void pair_grads(const float *restrict x, const float *restrict grad,
                                                             int64_t rows, int64_t stride, int64_t half, Sample t,
                                                             Gate g, float *restrict reconstructed,
                                                             float *restrict out, double *sum, double *product,
                                                             const int64_t width) {
    float dl_a[PAIR_RUN] = {0}, dl_b[PAIR_RUN] = {0}, dlx_a[PAIR_RUN] = {0}, dlx_b[PAIR_RUN] = {0};
    for (int64_t p = 0; p < rows; p++, x += stride, grad += stride, reconstructed += stride, out += stride)
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            float a = x[c], b = x[c + half], grad_a = grad[c], grad_b = grad[c + half];
            float logit_a = logit_of(a, t, c), logit_b = logit_of(b, t, c + half);
            float d_a = logit_grad(a, logit_a, grad_a + grad_b, g), d_b = logit_grad(b, logit_b, grad_a + grad_b, g);
            reconstructed[c] = own_part(a, logit_a, g) + cross_part(b, logit_b, g);
            reconstructed[c + half] = own_part(b, logit_b, g) + cross_part(a, logit_a, g);
            out[c] = direct_grad(logit_a, grad_a, grad_b, g) + d_a * t.slope[c];
            out[c + half] = direct_grad(logit_b, grad_b, grad_a, g) + d_b * t.slope[c + half];
            dl_a[c] += d_a;
            dl_b[c] += d_b;
            dlx_a[c] += d_a * ((a - t.mean[c]) * t.rstd[c]);
            dlx_b[c] += d_b * ((b - t.mean[c + half]) * t.rstd[c + half]);
        }
    for (int64_t c = 0; c < width; c++) {
        sum[c] += dl_a[c];
        sum[c + half] += dl_b[c];
        product[c] += dlx_a[c];
        product[c + half] += dlx_b[c];
    }
}

static inline void pair_grads_of_rows(Shape s, Gate g, const float *x, const float *grad, int64_t rows, Sample t,
                                      float *reconstructed, float *out, double *sum, double *product) {
    int64_t half = s.channels / 2;
    for (int64_t c = 0; c < half; c += PAIR_RUN) {
        int64_t width = min_of(PAIR_RUN, half - c);
        if (width == PAIR_RUN)
            pair_grads(x + c, grad + c, rows, s.channels, half, at_channel(t, c), g, reconstructed + c, out + c, sum + c,
                       product + c, PAIR_RUN);
        else if (width == PAIR_RUN / 2)
            pair_grads(x + c, grad + c, rows, s.channels, half, at_channel(t, c), g, reconstructed + c, out + c, sum + c,
                       product + c, PAIR_RUN / 2);
        else
            pair_grads(x + c, grad + c, rows, s.channels, half, at_channel(t, c), g, reconstructed + c, out + c, sum + c,
                       product + c, width);
    }
}

static inline __attribute__((always_inline)) void subtract_means(const float *restrict x, int64_t rows, Sample t,
                                                                 float *restrict out, const int64_t channels) {
    for (int64_t p = 0; p < rows; p++, x += channels, out += channels)
#pragma omp simd
        for (int64_t c = 0; c < channels; c++)
            out[c] -= t.rstd[c] * (t.mean_dl[c] + (x[c] - t.mean[c]) * t.rstd[c] * t.mean_dlx[c]);
}

static inline void finish_grads(Shape s, const float *x, int64_t rows, Sample t, float *out) {
    if (s.channels == 16)
        subtract_means(x, rows, t, out, 16);
    else if (s.channels == 32)
        subtract_means(x, rows, t, out, 32);
    else
        subtract_means(x, rows, t, out, s.channels);
}

/* Floats that each thread needs to read a chunk of a bfloat16 map. */
static inline int64_t chunk_room(Shape s, int bf16) { return bf16 ? chunk_positions(s) * s.channels : 0; }

/* Statistics of the samples [n, n + count) and the parameters of their gates. scratch: [threads][room], of at least
 * chunk_room; bf16 is for channels last alone. */
static inline void measure(Shape s, Gate g, const Map *x, int bf16, const float *scale, const float *shift, double eps,
                           int64_t n, int64_t count, int threads, float *scratch, int64_t room, Sample *all, float *mean,
                           float *rstd) {
    int64_t chunks = chunk_count(s), step = chunk_positions(s), values = s.channels * s.positions;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count * chunks; i++) {
        int64_t k = i / chunks, chunk = i % chunks, first = chunk * step, last = min_of(first + step, s.positions);
        const float *image = (const float *)x + (n + k) * values;
        if (bf16) {
            image = values_at(x, bf16, (n + k) * values + first * s.channels, (last - first) * s.channels,
                              own_part_of(scratch, room));
            last -= first, first = 0;
        }
        add_moments(s, image, first, last, all[k].sum + chunk * s.channels, all[k].product + chunk * s.channels);
    }
    for (int64_t k = 0; k < count; k++) {
        float *mu = mean + (n + k) * g.groups, *r = rstd + (n + k) * g.groups;
        finish_moments(s, g, eps, all[k], mu, r);
        spread(s, g, scale, shift, mu, r, all[k]);
    }
}

#endif
