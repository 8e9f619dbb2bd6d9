/* CRU's fuse behind two batch norms, channels last: Z = beta1 * BN(Y1) + beta2 * BN(Y2), Y2 = cat(pwc2_out, x_low), m of
 * whose channels are pwc2_out's. Batch norm, softmax and their backward need only sums over positions of the maps, and
 * then map them by Z = p * Y1 + q * Y2 + r, per sample and channel. The arithmetic in between is in double;
 * mmscconv/ops/norm_fuse.py derives it. */
#include "kernels.h"
#include "rows.h"

/* Some rows of each map as floats, grad's if there is one. */
typedef struct {
    const float *grad, *y1, *pwc2_out, *x_low;
} Chunk;

/* scratch: 3 * rows * channels floats for bfloat16 maps. */
static Chunk read_chunk(const Map *grad, const Map *y1, const Map *pwc2_out, const Map *x_low, int bf16, int64_t at,
                        int64_t rows, int64_t channels, int64_t low_channels, float *scratch) {
    int64_t m = channels - low_channels;
    float *of_pwc2_out = bf16 ? scratch + rows * channels : NULL, *of_x_low = bf16 ? of_pwc2_out + rows * m : NULL;
    float *of_grad = bf16 ? scratch + 2 * rows * channels : NULL;
    return (Chunk){grad ? values_at(grad, bf16, at * channels, rows * channels, of_grad) : NULL,
                   values_at(y1, bf16, at * channels, rows * channels, scratch),
                   values_at(pwc2_out, bf16, at * m, rows * m, of_pwc2_out),
                   values_at(x_low, bf16, at * low_channels, rows * low_channels, of_x_low)};
}

/* Sizes of all maps: grad and y1 are (N, P, C), pwc2_out is (N, P, C - low_channels), x_low is (N, P, low_channels). */
typedef struct {
    int64_t samples, channels, positions, low_channels;
    int bf16, threads;
} Sizes;

/* Without grad: the sums of Y1, Y1^2, Y2 and Y2^2; with it: of grad, grad * Y1 and grad * Y2; sums: (N, 4 or 3, C).
 * Returns 0, or 1 without memory. */
static int sums_of_maps(const Map *grad, const Map *y1, const Map *pwc2_out, const Map *x_low, Sizes sizes, double *sums) {
    int64_t samples = sizes.samples, channels = sizes.channels, positions = sizes.positions;
    int64_t low_channels = sizes.low_channels;
    int bf16 = sizes.bf16, threads = sizes.threads;
    Shape s = {samples, channels, positions, 1};
    int64_t chunks = chunk_count(s), step = chunk_positions(s), m = channels - low_channels, kinds = grad ? 3 : 4;
    int64_t room = 3 * step * channels;
    double *parts = malloc(samples * chunks * kinds * channels * sizeof(double));
    float *scratch = bf16 ? malloc(threads * room * sizeof(float)) : NULL;
    if (!parts || (bf16 && !scratch)) {
        free(parts);
        free(scratch);
        return 1;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples * chunks; i++) {
        int64_t n = i / chunks, first = i % chunks * step, last = min_of(first + step, positions);
        double *part = parts + i * kinds * channels;
        memset(part, 0, kinds * channels * sizeof(double));
        int64_t at = n * positions + first, rows = last - first;
        float *own = own_part_of(scratch, room);
        Chunk in = read_chunk(grad, y1, pwc2_out, x_low, bf16, at, rows, channels, low_channels, own);
        const float *y1_rows = in.y1, *pwc2_rows = in.pwc2_out, *low_rows = in.x_low;
        double *of_y2 = part + 2 * channels;
        if (grad) {
            const float *grad_rows = in.grad;
            sums_of_rows(grad_rows, channels, y1_rows, channels, rows, channels, part, part + channels);
            products_of_rows(grad_rows, channels, pwc2_rows, m, rows, m, of_y2);
            products_of_rows(grad_rows + m, channels, low_rows, low_channels, rows, low_channels, of_y2 + m);
        } else {
            moments_of_rows(y1_rows, channels, rows, channels, part, part + channels);
            moments_of_rows(pwc2_rows, m, rows, m, of_y2, of_y2 + channels);
            moments_of_rows(low_rows, low_channels, rows, low_channels, of_y2 + m, of_y2 + channels + m);
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < samples; n++)
        for (int64_t j = 0; j < kinds * channels; j++) {
            double total = 0;
            for (int64_t chunk = 0; chunk < chunks; chunk++) total += parts[(n * chunks + chunk) * kinds * channels + j];
            sums[n * kinds * channels + j] = total;
        }
    free(parts);
    free(scratch);
    return 0;
}

/* out = p * Y1 + q * Y2 + r; factors: (N, 3, C), p, q and r. Otherwise as above. */
static int map_forward(const Map *y1, const Map *pwc2_out, const Map *x_low, const float *factors, Sizes sizes, Map *out) {
    int64_t samples = sizes.samples, channels = sizes.channels, positions = sizes.positions;
    int64_t low_channels = sizes.low_channels;
    int bf16 = sizes.bf16, threads = sizes.threads;
    Shape s = {samples, channels, positions, 1};
    int64_t chunks = chunk_count(s), step = chunk_positions(s), m = channels - low_channels, room = 3 * step * channels;
    float *scratch = bf16 ? malloc(threads * room * sizeof(float)) : NULL;
    if (bf16 && !scratch) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples * chunks; i++) {
        int64_t n = i / chunks, first = i % chunks * step, rows = min_of(step, positions - first);
        int64_t at = n * positions + first;
        float *own = own_part_of(scratch, room);
        Chunk in = read_chunk(NULL, y1, pwc2_out, x_low, bf16, at, rows, channels, low_channels, own);
        const float *p = factors + n * 3 * channels, *q = p + channels, *r = q + channels;
        float *to = place_at(out, bf16, at * channels, own); /* over Y1, value by value */
        combine_rows(in.y1, channels, in.pwc2_out, m, p, q, r, rows, m, to, channels);
        combine_rows(in.y1 + m, channels, in.x_low, low_channels, p + m, q + m, r + m, rows, low_channels, to + m,
                     channels);
        put(out, bf16, at * channels, rows * channels, to);
    }
    free(scratch);
    return 0;
}

/* The gradients a * grad + b * Y + c of Y1 and Y2; factors: (N, 6, C), a, b and c of Y1, then of Y2. */
static int map_backward(const Map *grad, const Map *y1, const Map *pwc2_out, const Map *x_low, const float *factors,
                        Sizes sizes, Map *grad_y1, Map *grad_pwc2_out, Map *grad_x_low) {
    int64_t samples = sizes.samples, channels = sizes.channels, positions = sizes.positions;
    int64_t low_channels = sizes.low_channels;
    int bf16 = sizes.bf16, threads = sizes.threads;
    Shape s = {samples, channels, positions, 1};
    int64_t chunks = chunk_count(s), step = chunk_positions(s), m = channels - low_channels, room = 3 * step * channels;
    float *scratch = bf16 ? malloc(threads * room * sizeof(float)) : NULL;
    if (bf16 && !scratch) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < samples * chunks; i++) {
        int64_t n = i / chunks, first = i % chunks * step, rows = min_of(step, positions - first);
        int64_t at = n * positions + first;
        float *own = own_part_of(scratch, room);
        Chunk in = read_chunk(grad, y1, pwc2_out, x_low, bf16, at, rows, channels, low_channels, own);
        const float *a = factors + n * 6 * channels, *b = a + channels, *c = b + channels;
        /* Each gradient is written over the map that it is of, value by value. */
        float *to = place_at(grad_y1, bf16, at * channels, (float *)in.y1);
        combine_rows(in.grad, channels, in.y1, channels, a, b, c, rows, channels, to, channels);
        put(grad_y1, bf16, at * channels, rows * channels, to);
        a += 3 * channels, b += 3 * channels, c += 3 * channels;
        to = place_at(grad_pwc2_out, bf16, at * m, (float *)in.pwc2_out);
        combine_rows(in.grad, channels, in.pwc2_out, m, a, b, c, rows, m, to, m);
        put(grad_pwc2_out, bf16, at * m, rows * m, to);
        to = place_at(grad_x_low, bf16, at * low_channels, (float *)in.x_low);
        combine_rows(in.grad + m, channels, in.x_low, low_channels, a + m, b + m, c + m, rows, low_channels, to,
                     low_channels);
        put(grad_x_low, bf16, at * low_channels, rows * low_channels, to);
    }
    free(scratch);
    return 0;
}

/* One channel of both norms as the affine maps Y' = a * Y + c. */
typedef struct {
    double mean[2], rstd[2], a[2], c[2];
} Norms;

/* Weight, bias and eps of both norms; the statistics are (2, C). */
typedef struct {
    const float *weight[2], *bias[2];
    double eps[2];
    const double *mean, *variance;
    int64_t channels;
} Settings;

static Norms norms_of(Settings s, int64_t channel) {
    Norms n;
    for (int i = 0; i < 2; i++) {
        n.mean[i] = s.mean[i * s.channels + channel];
        n.rstd[i] = 1. / sqrt(s.variance[i * s.channels + channel] + s.eps[i]);
        n.a[i] = s.weight[i][channel] * n.rstd[i];
        n.c[i] = s.bias[i][channel] - n.a[i] * n.mean[i];
    }
    return n;
}

/* Eq. 7 of one sample, whose means of Y1 and Y2 are given. */
static void softmax_of(Norms n, double mean1, double mean2, double *beta) {
    double difference = n.a[0] * mean1 + n.c[0] - (n.a[1] * mean2 + n.c[1]);
    beta[0] = 1. / (1. + exp(-difference));
    beta[1] = 1. / (1. + exp(difference));
}

/* y1, pwc2_out, x_low: the maps; weights and biases: (C); out: (N, P, C); mean and variance: (2, C), of the batch;
 * sample_means: (2, N, C). Returns 0, or 1 without memory. */
int norm_fuse_forward(const Map *y1, const Map *pwc2_out, const Map *x_low, const float *weight1, const float *bias1,
                      double eps1, const float *weight2, const float *bias2, double eps2, int64_t samples,
                      int64_t channels, int64_t positions, int64_t low_channels, int bf16, int threads, Map *out,
                      double *mean, double *variance, double *sample_means) {
    Sizes sizes = {samples, channels, positions, low_channels, bf16, threads};
    double *sums = malloc(samples * 4 * channels * sizeof(double));
    float *factors = malloc(samples * 3 * channels * sizeof(float));
    int failed = !sums || !factors || sums_of_maps(NULL, y1, pwc2_out, x_low, sizes, sums);
    Settings settings = {{weight1, weight2}, {bias1, bias2}, {eps1, eps2}, mean, variance, channels};
    for (int64_t c = 0; c < channels && !failed; c++) {
        for (int i = 0; i < 2; i++) {
            double of_values = 0, of_squares = 0;
            for (int64_t n = 0; n < samples; n++) {
                const double *at = sums + (n * 4 + 2 * i) * channels + c;
                sample_means[(i * samples + n) * channels + c] = at[0] / positions;
                of_values += at[0] / positions;
                of_squares += at[channels] / positions;
            }
            mean[i * channels + c] = of_values / samples;
            double v = of_squares / samples - of_values / samples * (of_values / samples);
            variance[i * channels + c] = v < 0 ? 0 : v; /* a NaN stays one */
        }
        Norms norms = norms_of(settings, c);
        for (int64_t n = 0; n < samples; n++) {
            float *to = factors + n * 3 * channels + c;
            double beta[2];
            softmax_of(norms, sample_means[n * channels + c], sample_means[(samples + n) * channels + c], beta);
            to[0] = (float)(beta[0] * norms.a[0]);
            to[channels] = (float)(beta[1] * norms.a[1]);
            to[2 * channels] = (float)(beta[0] * norms.c[0] + beta[1] * norms.c[1]);
        }
    }
    failed = failed || map_forward(y1, pwc2_out, x_low, factors, sizes, out);
    free(sums);
    free(factors);
    return failed;
}

/* grad: (N, P, C); mean, variance, sample_means: as norm_fuse_forward gave them; grad_y1, grad_pwc2_out, grad_x_low: as
 * the maps; grad_weights, grad_biases: (2, C). Otherwise as above. */
int norm_fuse_backward(const Map *grad, const Map *y1, const Map *pwc2_out, const Map *x_low, const float *weight1,
                       const float *bias1, double eps1, const float *weight2, const float *bias2, double eps2,
                       const double *mean, const double *variance, const double *sample_means, int64_t samples,
                       int64_t channels, int64_t positions, int64_t low_channels, int bf16, int threads, Map *grad_y1,
                       Map *grad_pwc2_out, Map *grad_x_low, double *grad_weights, double *grad_biases) {
    Sizes sizes = {samples, channels, positions, low_channels, bf16, threads};
    double *sums = malloc(samples * 3 * channels * sizeof(double));
    double *pull = malloc(samples * sizeof(double)); /* e of one channel */
    float *factors = malloc(samples * 6 * channels * sizeof(float));
    int failed = !sums || !pull || !factors || sums_of_maps(grad, y1, pwc2_out, x_low, sizes, sums);
    Settings settings = {{weight1, weight2}, {bias1, bias2}, {eps1, eps2}, mean, variance, channels};
    double per_value = 1. / ((double)samples * (double)positions);
    for (int64_t c = 0; c < channels && !failed; c++) {
        Norms norms = norms_of(settings, c);
        double of_bias[2] = {0}, of_product[2] = {0}; /* the sums of dY' and of dY' * Y */
        for (int64_t n = 0; n < samples; n++) {
            const double *at = sums + n * 3 * channels + c;
            double total = at[0], beta[2];
            softmax_of(norms, sample_means[n * channels + c], sample_means[(samples + n) * channels + c], beta);
            double difference = norms.a[0] * at[channels] + norms.c[0] * total
                                - (norms.a[1] * at[2 * channels] + norms.c[1] * total);
            pull[n] = beta[0] * beta[1] * difference;
            for (int i = 0; i < 2; i++) {
                double e = i ? -pull[n] : pull[n];
                of_bias[i] += beta[i] * total + e;
                of_product[i] += beta[i] * at[(i + 1) * channels] + e * sample_means[(i * samples + n) * channels + c];
                factors[(n * 6 + 3 * i) * channels + c] = (float)(norms.a[i] * beta[i]);
            }
        }
        for (int i = 0; i < 2; i++) {
            double of_weight = norms.rstd[i] * (of_product[i] - norms.mean[i] * of_bias[i]);
            double factor = -norms.a[i] * norms.rstd[i] * per_value * of_weight;
            double constant = -norms.a[i] * per_value * of_bias[i] - factor * norms.mean[i];
            grad_weights[i * channels + c] = of_weight;
            grad_biases[i * channels + c] = of_bias[i];
            for (int64_t n = 0; n < samples; n++) {
                float *to = factors + (n * 6 + 3 * i + 1) * channels + c;
                to[0] = (float)factor;
                to[channels] = (float)(constant + norms.a[i] * (i ? -pull[n] : pull[n]) / positions);
            }
        }
    }
    failed = failed || map_backward(grad, y1, pwc2_out, x_low, factors, sizes, grad_y1, grad_pwc2_out, grad_x_low);
    free(sums);
    free(pull);
    free(factors);
    return failed;
}
