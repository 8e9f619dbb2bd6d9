/* CRU's fuse, Eq. 7-9: Z = beta1 * Y1 + beta2 * Y2 with Y1 = y1 + y1_addend (y1_addend may be NULL) and
 * Y2 = cat(pwc2_out, x_low) along the channels (pwc2_out may have none), then Z * scale + shift (both may be NULL).
 * m is the number of pwc2_out's channels.
 *
 * Eq. 8's softmax over two values is a sigmoid of their difference, so one mean per channel is enough:
 * beta1 = sigmoid(mean(Y1 - Y2)), Z = Y2 + beta1 * (Y1 - Y2). */
#include "common.h"
#include "kernels.h"

/* Rows of successive values: of one position in channels last, of one channel in NCHW. All tensors are dense, except
 * `x_low`, which may be a slice. */
typedef struct {
    const float *data;
    int64_t sample, row; /* strides */
} Rows;

static const float *row_of(Rows r, int64_t n, int64_t i) { return r.data ? r.data + n * r.sample + i * r.row : NULL; }

static Rows dense(Shape s, const float *data, int64_t channels) {
    return (Rows){data, channels * s.positions, s.channels_last ? channels : s.positions};
}

typedef struct {
    Rows pwc2_out, x_low;
    int64_t pwc2_channels;
} Lower;

static Lower lower_of(Shape s, const float *pwc2_out, const float *x_low, int64_t low_channels, int64_t low_sample,
                      int64_t low_row) {
    int64_t channels = s.channels - low_channels;
    return (Lower){dense(s, pwc2_out, channels), {x_low, low_sample, low_row}, channels};
}

/* Y2 in NCHW: the plane of channel c. */
static const float *plane_of(Lower y2, int64_t n, int64_t c) {
    return c < y2.pwc2_channels ? row_of(y2.pwc2_out, n, c) : row_of(y2.x_low, n, c - y2.pwc2_channels);
}

static inline float y1_of(const float *y1, const float *y1_addend, int64_t i) {
    return y1[i] + (y1_addend ? y1_addend[i] : 0.f);
}

/* A term of the sums over positions: Y1 - Y2 of Y1's two parts, or the product grad * (reference - Y2). */
static inline float term_of(const float *a, const float *b, const float *y2, int64_t i, const int product) {
    return product ? a[i] * (b[i] - y2[i]) : y1_of(a, b, i) - y2[i];
}

static inline void add_terms(const float *a, const float *b, const float *y2, int64_t length, const int product,
                             double *sum) {
#pragma omp simd
    for (int64_t c = 0; c < length; c++) sum[c] += term_of(a, b, y2, c, product);
}

static inline double total_of_terms(const float *a, const float *b, const float *y2, int64_t from, int64_t to,
                                    const int product) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t p = from; p < to; p++) total += term_of(a, b, y2, p, product);
    return total;
}

static inline void sum_chunk(Shape s, Rows a, Rows b, Lower y2, int64_t n, int64_t from, int64_t to, const int product,
                             double *sum) {
    int64_t m = y2.pwc2_channels;
    if (!s.channels_last) {
        for (int64_t c = 0; c < s.channels; c++)
            sum[c] = total_of_terms(row_of(a, n, c), row_of(b, n, c), plane_of(y2, n, c), from, to, product);
        return;
    }
    memset(sum, 0, s.channels * sizeof(double));
    for (int64_t p = from; p < to; p++) {
        const float *x = row_of(a, n, p), *y = row_of(b, n, p);
        add_terms(x, y, row_of(y2.pwc2_out, n, p), m, product, sum);
        add_terms(x + m, y ? y + m : NULL, row_of(y2.x_low, n, p), s.channels - m, product, sum + m);
    }
}

/* Per channel: z * scale + shift with z = y2 + beta * (y1 - y2). */
typedef struct {
    const float *beta, *scale, *shift;
} Epilogue;

static inline Epilogue from_channel(Epilogue e, int64_t c) {
    return (Epilogue){e.beta + c, e.scale ? e.scale + c : NULL, e.shift ? e.shift + c : NULL};
}

static inline void lerp_run(const float *y1, const float *y1_addend, const float *y2, int64_t from, int64_t to,
                            Epilogue e, float *out, const int vary) {
#pragma omp simd
    for (int64_t i = from; i < to; i++) {
        int64_t c = vary ? i : 0;
        float z = y2[i] + e.beta[c] * (y1_of(y1, y1_addend, i) - y2[i]);
        out[i] = e.scale ? z * e.scale[c] + e.shift[c] : z;
    }
}

static void lerp_chunk(Shape s, Rows y1, Rows y1_addend, Lower y2, int64_t n, int64_t from, int64_t to, Epilogue e,
                       float *out) {
    int64_t m = y2.pwc2_channels;
    if (!s.channels_last) {
        for (int64_t c = 0; c < s.channels; c++)
            lerp_run(row_of(y1, n, c), row_of(y1_addend, n, c), plane_of(y2, n, c), from, to, from_channel(e, c),
                     out + c * s.positions, 0);
        return;
    }
    for (int64_t p = from; p < to; p++) {
        const float *a = row_of(y1, n, p), *b = row_of(y1_addend, n, p);
        float *o = out + p * s.channels;
        lerp_run(a, b, row_of(y2.pwc2_out, n, p), 0, m, e, o, 1);
        lerp_run(a + m, b ? b + m : NULL, row_of(y2.x_low, n, p), 0, s.channels - m, from_channel(e, m), o + m, 1);
    }
}

/* y1, y1_addend, out: (N, C, H*W), out may be y1; pwc2_out: (N, C - low_channels, H*W); x_low: (N, low_channels, H*W) with
 * the given strides; beta1: (N, C). Returns 0, or 1 without memory. */
int fuse_forward(const float *y1, const float *y1_addend, const float *pwc2_out, const float *x_low, const float *scale,
                 const float *shift, int64_t samples, int64_t channels, int64_t positions, int channels_last,
                 int64_t low_channels, int64_t low_sample, int64_t low_row, int threads, float *out, float *beta1) {
    Shape s = {samples, channels, positions, channels_last};
    Rows y1_rows = dense(s, y1, channels), addend = dense(s, y1_addend, channels);
    Lower y2 = lower_of(s, pwc2_out, x_low, low_channels, low_sample, low_row);
    int64_t at_once = block_samples(s), chunks = chunk_count(s), step = chunk_positions(s);
    double *sums = malloc(at_once * chunks * channels * sizeof(double));
    if (!sums) return 1;
    for (int64_t n = 0; n < samples; n += at_once) {
        int64_t count = min_of(at_once, samples - n), tasks = count * chunks;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t from = i % chunks * step;
            sum_chunk(s, y1_rows, addend, y2, n + i / chunks, from, min_of(from + step, positions), 0, sums + i * channels);
        }
        for (int64_t k = 0; k < count; k++)
            for (int64_t c = 0; c < channels; c++) {
                double mean = over_chunks(s, sums + k * chunks * channels, c) / (double)positions;
                beta1[(n + k) * channels + c] = (float)(1 / (1 + exp(-mean)));
            }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t k = n + i / chunks, from = i % chunks * step;
            lerp_chunk(s, y1_rows, addend, y2, k, from, min_of(from + step, positions),
                       (Epilogue){beta1 + k * channels, scale, shift}, out + k * channels * positions);
        }
    }
    free(sums);
    return 0;
}

/* grad1 = beta1 * grad + pull, grad2 = beta2 * grad - pull, where pull is Y1's gradient through its mean. */
static inline void split_run(const float *grad, int64_t from, int64_t to, const float *beta, const float *pull,
                             float *restrict grad1, float *restrict grad2, const int vary) {
#pragma omp simd
    for (int64_t i = from; i < to; i++) {
        int64_t c = vary ? i : 0;
        float part = beta[c] * grad[i] + pull[c];
        grad1[i] = part;
        grad2[i] = grad[i] - part;
    }
}

static void split_chunk(Shape s, Rows grad, int64_t n, int64_t m, int64_t from, int64_t to, const float *beta,
                        const float *pull, float *grad1, float *grad_pwc2_out, float *grad_x_low) {
    int64_t low_channels = s.channels - m;
    if (!s.channels_last) {
        for (int64_t c = 0; c < s.channels; c++)
            split_run(row_of(grad, n, c), from, to, beta + c, pull + c, grad1 + c * s.positions,
                      c < m ? grad_pwc2_out + c * s.positions : grad_x_low + (c - m) * s.positions, 0);
        return;
    }
    for (int64_t p = from; p < to; p++) {
        const float *g = row_of(grad, n, p);
        float *g1 = grad1 + p * s.channels;
        split_run(g, 0, m, beta, pull, g1, grad_pwc2_out + p * m, 1);
        split_run(g + m, 0, low_channels, beta + m, pull + m, g1 + m, grad_x_low + p * low_channels, 1);
    }
}

/* reference is Y1, or Z if is_output: Z - Y2 = beta1 * (Y1 - Y2). grad, reference, grad1, grad_pwc2_out and
 * grad_x_low are dense. pull: (N, C), workspace. */
int fuse_backward(const float *grad, const float *reference, int is_output, const float *pwc2_out, const float *x_low,
                  const float *beta1, int64_t samples, int64_t channels, int64_t positions, int channels_last,
                  int64_t low_channels, int64_t low_sample, int64_t low_row, int threads, float *pull, float *grad1,
                  float *grad_pwc2_out, float *grad_x_low) {
    Shape s = {samples, channels, positions, channels_last};
    Rows upstream = dense(s, grad, channels), from_y2 = dense(s, reference, channels);
    Lower y2 = lower_of(s, pwc2_out, x_low, low_channels, low_sample, low_row);
    int64_t at_once = block_samples(s), chunks = chunk_count(s), step = chunk_positions(s);
    int64_t pwc2_channels = y2.pwc2_channels;
    double *sums = malloc(at_once * chunks * channels * sizeof(double));
    if (!sums) return 1;
    for (int64_t n = 0; n < samples; n += at_once) {
        int64_t count = min_of(at_once, samples - n), tasks = count * chunks;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t from = i % chunks * step;
            sum_chunk(s, upstream, from_y2, y2, n + i / chunks, from, min_of(from + step, positions), 1,
                      sums + i * channels);
        }
        for (int64_t k = 0; k < count; k++)
            for (int64_t c = 0; c < channels; c++) {
                double b = beta1[(n + k) * channels + c], factor = is_output ? 1 - b : b * (1 - b);
                pull[(n + k) * channels + c] =
                    (float)(factor * over_chunks(s, sums + k * chunks * channels, c) / (double)positions);
            }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t k = n + i / chunks, from = i % chunks * step;
            split_chunk(s, upstream, k, pwc2_channels, from, min_of(from + step, positions), beta1 + k * channels,
                        pull + k * channels, grad1 + k * channels * positions,
                        grad_pwc2_out + k * pwc2_channels * positions, grad_x_low + k * low_channels * positions);
        }
    }
    free(sums);
    return 0;
}
