/* Batch norm in training, channels last. The maps between a CRU's convolutions have 4 to 16 channels in narrow networks,
 * of which PyTorch's own norm fills a part of a vector. Sums run in double over chunks whose number does not depend on the
 * number of threads. */
#include "kernels.h"
#include "rows.h"

/* The map as rows of `width` values: one row, or as many as fill a vector. */
typedef struct {
    int64_t values, width, step, chunks; /* step: values of a chunk */
} Rows;

static Rows rows_of(int64_t rows, int64_t channels) {
    Rows s = {rows * channels, channels, 0, 0};
    if (channels < WIDE && WIDE % channels == 0) s.width = WIDE;
    s.step = max_of(1, CHUNK_VALUES / s.width) * s.width;
    s.chunks = (s.values + s.step - 1) / s.step;
    return s;
}

/* Sums of a and of a * b over all rows; sums: (2, channels). Returns 0, or 1 without memory. */
static int sums(Rows s, const Map *a_map, const Map *b_map, int bf16, int64_t channels, int threads, float *scratch,
                double *sums) {
    double *parts = calloc(max_of(1, s.chunks) * 2 * s.width, sizeof(double));
    if (!parts) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < s.chunks; i++) {
        int64_t first = i * s.step, count = min_of(s.step, s.values - first), whole = count / s.width * s.width;
        double *part = parts + i * 2 * s.width;
        float *own = own_part_of(scratch, 2 * s.step);
        const float *a = values_at(a_map, bf16, first, count, own);
        const float *b = a_map == b_map ? a : values_at(b_map, bf16, first, count, bf16 ? own + s.step : NULL);
        sums_of_rows(a, s.width, b, s.width, count / s.width, s.width, part, part + s.width);
        /* The last rows may not fill a vector. */
        sums_of_rows(a + whole, s.width, b + whole, s.width, 1, count - whole, part, part + s.width);
    }
    for (int64_t kind = 0; kind < 2; kind++)
        for (int64_t c = 0; c < channels; c++) {
            double total = 0;
            for (int64_t i = 0; i < s.chunks; i++)
                for (int64_t j = c; j < s.width; j += channels) total += parts[(i * 2 + kind) * s.width + j];
            sums[kind * channels + c] = total;
        }
    free(parts);
    return 0;
}

/* to = p * x + q * y + r; factors: (3, width). */
static void combine(Rows s, const Map *x_map, const Map *y_map, int bf16, const float *factors, int threads, float *scratch,
                    Map *to_map) {
    const float *p = factors, *q = p + s.width, *r = q + s.width;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < s.chunks; i++) {
        int64_t first = i * s.step, count = min_of(s.step, s.values - first), whole = count / s.width * s.width;
        float *own = own_part_of(scratch, 2 * s.step), *to = place_at(to_map, bf16, first, own);
        const float *x = values_at(x_map, bf16, first, count, own);
        const float *y = x_map == y_map ? x : values_at(y_map, bf16, first, count, bf16 ? own + s.step : NULL);
        combine_rows(x, s.width, y, s.width, p, q, r, count / s.width, s.width, to, s.width);
        combine_rows(x + whole, s.width, y + whole, s.width, p, q, r, 1, count - whole, to + whole, s.width);
        put(to_map, bf16, first, count, to);
    }
}

/* out = weight * (x - mean) / sqrt(variance + eps) + bias with the batch's mean and biased variance, which are returned.
 * x and out: (rows, channels). Returns 0, or 1 without memory. */
int batch_norm_forward(const Map *x, const float *weight, const float *bias, int64_t rows, int64_t channels, double eps,
                       int bf16, int threads, Map *out, double *mean, double *variance) {
    Rows s = rows_of(rows, channels);
    double *total = malloc(2 * channels * sizeof(double));
    float *factors = malloc(3 * s.width * sizeof(float));
    float *scratch = bf16 ? malloc(threads * 2 * s.step * sizeof(float)) : NULL;
    int failed = !total || !factors || (bf16 && !scratch) || sums(s, x, x, bf16, channels, threads, scratch, total);
    if (!failed) {
        for (int64_t c = 0; c < channels; c++) {
            mean[c] = total[c] / rows;
            variance[c] = total[channels + c] / rows - mean[c] * mean[c];
            if (variance[c] < 0) variance[c] = 0; /* NaN stays NaN */
        }
        for (int64_t j = 0; j < s.width; j++) {
            int64_t c = j % channels;
            double scale = weight[c] / sqrt(variance[c] + eps);
            factors[j] = (float)scale;
            factors[s.width + j] = 0;
            factors[2 * s.width + j] = (float)(bias[c] - scale * mean[c]);
        }
        combine(s, x, x, bf16, factors, threads, scratch, out);
    }
    free(scratch);
    free(total);
    free(factors);
    return failed;
}

/* The gradients of x, (rows, channels), and of weight and bias. Returns 0, or 1 without memory. */
int batch_norm_backward(const Map *grad, const Map *x, const float *weight, const double *mean, const double *variance,
                        int64_t rows, int64_t channels, double eps, int bf16, int threads, Map *grad_x,
                        double *grad_weight, double *grad_bias) {
    Rows s = rows_of(rows, channels);
    double *total = malloc(2 * channels * sizeof(double));
    float *factors = malloc(3 * s.width * sizeof(float));
    float *scratch = bf16 ? malloc(threads * 2 * s.step * sizeof(float)) : NULL;
    int failed = !total || !factors || (bf16 && !scratch) || sums(s, grad, x, bf16, channels, threads, scratch, total);
    if (!failed) {
        for (int64_t c = 0; c < channels; c++) {
            grad_bias[c] = total[c];
            grad_weight[c] = (total[channels + c] - mean[c] * total[c]) / sqrt(variance[c] + eps);
        }
        for (int64_t j = 0; j < s.width; j++) {
            /* a * (grad - mean(grad) - xhat * mean(grad * xhat)) with xhat = (x - mean) * rstd. */
            int64_t c = j % channels;
            double rstd = 1 / sqrt(variance[c] + eps), a = weight[c] * rstd;
            double of_x = -a * rstd * grad_weight[c] / rows;
            factors[j] = (float)a;
            factors[s.width + j] = (float)of_x;
            factors[2 * s.width + j] = (float)(-a * grad_bias[c] / rows - of_x * mean[c]);
        }
        combine(s, grad, x, bf16, factors, threads, scratch, grad_x);
    }
    free(scratch);
    free(total);
    free(factors);
    return failed;
}
