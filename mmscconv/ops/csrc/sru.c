/* SRU, Eq. 1-4: statistics, then gate and cross reconstruction; and a backward that recomputes the gate from X.
 *
 * scale and shift are GN's with the weights of Eq. 2 folded in: the logit of Eq. 3 is
 * scale * (x - mean) * rstd + shift. Channel c pairs with channel c + C/2. */
#include "gemm.h"

#define RUN 512

typedef struct {
    int64_t groups;
    float threshold; /* of the logit */
    int hard;
} Gate;

/* What one sample's tasks need or give. */
typedef struct {
    double *sum, *product;             /* [chunks][C] each: a chunk's part of two sums per channel */
    float *mean, *rstd, *slope, *shift; /* [C]: the logit is (x - mean) * slope + shift */
    float *mean_dl, *mean_dlx;         /* [C]: over the group, of dl * scale and of dl * scale * xhat */
} Sample;

static Sample *make_samples(Shape s, int64_t count) {
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

static void free_samples(Sample *all) {
    free(all[0].sum);
    free(all);
}

static Sample at_channel(Sample t, int64_t c) {
    t.mean += c, t.rstd += c, t.slope += c, t.shift += c, t.mean_dl += c, t.mean_dlx += c;
    return t;
}

static void add_moments(Shape s, const float *x, int64_t first, int64_t last, double *sum, double *square) {
    memset(sum, 0, s.channels * sizeof(double));
    memset(square, 0, s.channels * sizeof(double));
    if (s.channels_last) {
        for (int64_t p = first; p < last; p++) {
            const float *row = x + p * s.channels;
#pragma omp simd
            for (int64_t c = 0; c < s.channels; c++) {
                double v = row[c];
                sum[c] += v;
                square[c] += v * v;
            }
        }
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

static void finish_moments(Shape s, Gate g, double eps, Sample t, float *mean, float *rstd) {
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

static void spread(Shape s, Gate g, const float *scale, const float *shift, const float *mean, const float *rstd,
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

/* In the runs, `vary` is 1 where successive values belong to successive channels and 0 within one channel: a
 * constant at each call, for the compiler to make two loops of it. */
static inline void gate_run(const float *restrict a, const float *restrict b, float *restrict out_a,
                            float *restrict out_b, int64_t length, Sample t, int64_t half, Gate g, const int vary) {
#pragma omp simd
    for (int64_t i = 0; i < length; i++) {
        int64_t c = vary ? i : 0;
        float logit_a = logit_of(a[i], t, c), logit_b = logit_of(b[i], t, c + half);
        float part_a = a[i] * sigmoid_of(logit_a), part_b = b[i] * sigmoid_of(logit_b);
        float own_a = g.hard ? 0.f : part_a, own_b = g.hard ? 0.f : part_b;
        float cross_a = g.hard ? a[i] : part_a, cross_b = g.hard ? b[i] : part_b;
        out_a[i] = (logit_a > g.threshold ? a[i] : own_a) + (logit_b > g.threshold ? 0.f : cross_b);
        out_b[i] = (logit_b > g.threshold ? b[i] : own_b) + (logit_a > g.threshold ? 0.f : cross_a);
    }
}

static void gate_chunk(Shape s, Gate g, const float *x, int64_t first, int64_t last, Sample t, float *out) {
    int64_t half = s.channels / 2, far = half * s.positions;
    if (s.channels_last)
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

/* dl and dl * xhat of a run. Apart from their sums in double, which would halve the width of these loops. */
static inline void logit_grads_run(const float *x, const float *own, const float *other, int64_t length, Sample t, Gate g,
                                   float *restrict dl, float *restrict dlx, const int vary) {
#pragma omp simd
    for (int64_t i = 0; i < length; i++) {
        int64_t c = vary ? i : 0;
        dl[i] = logit_grad(x[i], logit_of(x[i], t, c), own[i] + other[i], g);
        dlx[i] = dl[i] * ((x[i] - t.mean[c]) * t.rstd[c]);
    }
}

/* The gradient sums of the channels [from, from + half), whose partners lie `over` channels further. */
static void add_grad_sums_of_half(Shape s, Gate g, const float *x, const float *grad, int64_t first, int64_t last,
                                  Sample t, int64_t from, int64_t over, double *sum, double *product) {
    int64_t half = s.channels / 2;
    float dl[RUN], dlx[RUN];
    if (s.channels_last) {
        for (int64_t p = first; p < last; p++)
            for (int64_t c = from; c < from + half; c += RUN) {
                int64_t length = min_of(RUN, from + half - c), i = p * s.channels + c;
                logit_grads_run(x + i, grad + i, grad + i + over, length, at_channel(t, c), g, dl, dlx, 1);
#pragma omp simd
                for (int64_t k = 0; k < length; k++) {
                    sum[c + k] += dl[k];
                    product[c + k] += dlx[k];
                }
            }
        return;
    }
    for (int64_t c = from; c < from + half; c++) {
        double total = 0, products = 0;
        for (int64_t p = first; p < last; p += RUN) {
            int64_t length = min_of(RUN, last - p), i = c * s.positions + p;
            logit_grads_run(x + i, grad + i, grad + i + over * s.positions, length, at_channel(t, c), g, dl, dlx, 0);
#pragma omp simd reduction(+ : total, products)
            for (int64_t k = 0; k < length; k++) {
                total += dl[k];
                products += dlx[k];
            }
        }
        sum[c] = total;
        product[c] = products;
    }
}

static void add_grad_sums(Shape s, Gate g, const float *x, const float *grad, int64_t first, int64_t last, Sample t,
                          double *sum, double *product) {
    int64_t half = s.channels / 2;
    memset(sum, 0, s.channels * sizeof(double));
    memset(product, 0, s.channels * sizeof(double));
    add_grad_sums_of_half(s, g, x, grad, first, last, t, 0, half, sum, product);
    add_grad_sums_of_half(s, g, x, grad, first, last, t, half, -half, sum, product);
}

static void finish_grad_sums(Shape s, Gate g, const float *scale, Sample t, double *grad_scale, double *grad_shift) {
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

/* What reaches a value directly through the gate, and through GN. `slope` is scale * rstd. */
static inline float input_grad(float x, float own, float other, Sample t, int64_t c, Gate g) {
    float logit = logit_of(x, t, c), upstream = own + other, xhat = (x - t.mean[c]) * t.rstd[c];
    float below = g.hard ? other : sigmoid_of(logit) * upstream;
    float direct = logit > g.threshold ? own : below;
    return direct + logit_grad(x, logit, upstream, g) * t.slope[c] - t.rstd[c] * (t.mean_dl[c] + xhat * t.mean_dlx[c]);
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

static void grad_chunk(Shape s, Gate g, const float *x, const float *grad, int64_t first, int64_t last, Sample t,
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

/* Statistics of the samples [n, n + count) and what their gates need. */
static void measure(Shape s, Gate g, const float *x, const float *scale, const float *shift, double eps, int64_t n,
                    int64_t count, int threads, Sample *all, float *mean, float *rstd) {
    int64_t chunks = chunk_count(s), step = chunk_positions(s), values = s.channels * s.positions;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count * chunks; i++) {
        int64_t k = i / chunks, chunk = i % chunks, first = chunk * step, last = min_of(first + step, s.positions);
        add_moments(s, x + (n + k) * values, first, last, all[k].sum + chunk * s.channels,
                    all[k].product + chunk * s.channels);
    }
    for (int64_t k = 0; k < count; k++) {
        float *mu = mean + (n + k) * g.groups, *r = rstd + (n + k) * g.groups;
        finish_moments(s, g, eps, all[k], mu, r);
        spread(s, g, scale, shift, mu, r, all[k]);
    }
}

/* x and out: (N, C, H*W) in the layout of `channels_last`; mean and rstd: (N, groups). Returns 0, or 1 without
 * memory. */
int sru_forward(const float *x, const float *scale, const float *shift, int64_t samples, int64_t channels,
                int64_t positions, int channels_last, int64_t groups, double eps, float threshold, int hard, int threads,
                float *out, float *mean, float *rstd) {
    Shape s = {samples, channels, positions, channels_last};
    Gate g = {groups, threshold, hard};
    int64_t at_once = block_samples(s), chunks = chunk_count(s), step = chunk_positions(s);
    int64_t values = channels * positions;
    Sample *all = make_samples(s, at_once);
    if (!all) return 1;
    for (int64_t n = 0; n < samples; n += at_once) {
        int64_t count = min_of(at_once, samples - n), tasks = count * chunks;
        measure(s, g, x, scale, shift, eps, n, count, threads, all, mean, rstd);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t k = i / chunks, first = i % chunks * step, last = min_of(first + step, positions);
            gate_chunk(s, g, x + (n + k) * values, first, last, all[k], out + (n + k) * values);
        }
    }
    free_samples(all);
    return 0;
}

/* grad and grad_x as x; grad_scale and grad_shift: (C). */
int sru_backward(const float *grad, const float *x, const float *scale, const float *shift, const float *mean,
                 const float *rstd, int64_t samples, int64_t channels, int64_t positions, int channels_last,
                 int64_t groups, float threshold, int hard, int threads, float *grad_x, double *grad_scale,
                 double *grad_shift) {
    Shape s = {samples, channels, positions, channels_last};
    Gate g = {groups, threshold, hard};
    int64_t at_once = block_samples(s), chunks = chunk_count(s), step = chunk_positions(s);
    int64_t values = channels * positions;
    Sample *all = make_samples(s, at_once);
    if (!all) return 1;
    memset(grad_scale, 0, channels * sizeof(double));
    memset(grad_shift, 0, channels * sizeof(double));
    for (int64_t n = 0; n < samples; n += at_once) {
        int64_t count = min_of(at_once, samples - n), tasks = count * chunks;
        for (int64_t k = 0; k < count; k++)
            spread(s, g, scale, shift, mean + (n + k) * groups, rstd + (n + k) * groups, all[k]);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t k = i / chunks, chunk = i % chunks, first = chunk * step, last = min_of(first + step, positions);
            add_grad_sums(s, g, x + (n + k) * values, grad + (n + k) * values, first, last, all[k],
                          all[k].sum + chunk * channels, all[k].product + chunk * channels);
        }
        for (int64_t k = 0; k < count; k++) finish_grad_sums(s, g, scale, all[k], grad_scale, grad_shift);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t k = i / chunks, first = i % chunks * step, last = min_of(first + step, positions);
            grad_chunk(s, g, x + (n + k) * values, grad + (n + k) * values, first, last, all[k],
                       grad_x + (n + k) * values);
        }
    }
    free_samples(all);
    return 0;
}

/* SRU and both squeezes: out_up = up * X^w[:cut] and out_low = low * X^w[cut:], (N, squeezed_up, H*W) and
 * (N, squeezed_low, H*W), with the weights up and low in panels. X^w never leaves the caches. Channels last only. */
int sru_squeeze(const float *x, const float *scale, const float *shift, const float *up, const float *low,
                int64_t samples, int64_t channels, int64_t positions, int64_t groups, double eps, float threshold,
                int hard, int64_t cut, int64_t squeezed_up, int64_t squeezed_low, int threads, float *out_up,
                float *out_low) {
    Shape s = {samples, channels, positions, 1};
    Gate g = {groups, threshold, hard};
    int64_t at_once = block_samples(s), blocks = (positions + BLOCK_ROWS - 1) / BLOCK_ROWS;
    float *statistics = malloc(2 * samples * groups * sizeof(float) + 1);
    float *scratch = malloc(threads * BLOCK_ROWS * channels * sizeof(float));
    Sample *all = make_samples(s, at_once);
    int failed = !statistics || !scratch || !all;
    for (int64_t n = 0; n < samples && !failed; n += at_once) {
        int64_t count = min_of(at_once, samples - n);
        measure(s, g, x, scale, shift, eps, n, count, threads, all, statistics, statistics + samples * groups);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < count * blocks; i++) {
            int64_t k = i / blocks, first = i % blocks * BLOCK_ROWS, rows = min_of(BLOCK_ROWS, positions - first);
            float *reconstructed = scratch + thread_number() * BLOCK_ROWS * channels;
            const float *from = x + ((n + k) * positions + first) * channels;
            int64_t to = (n + k) * positions + first;
            gate_chunk(s, g, from, 0, rows, all[k], reconstructed);
            gemm(reconstructed, channels, rows, up, cut, squeezed_up, out_up + to * squeezed_up, squeezed_up);
            gemm(reconstructed + cut, channels, rows, low, channels - cut, squeezed_low, out_low + to * squeezed_low,
                 squeezed_low);
        }
    }
    free(statistics);
    free(scratch);
    if (all) free_samples(all);
    return failed;
}
