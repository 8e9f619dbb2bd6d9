/* SRU and the two squeezes of the CRU behind it, channels last: X^w never leaves the caches, nor does its gradient. */
#include "gate.h"
#include "gemm.h"
#include "kernels.h"
#include "pool.h"
#include "tiles.h"

/* A squeeze's weights in panels of `depth` and, for tiles, in steps; its outputs and their biases, or NULL. */
typedef struct {
    const float *panels, *bias;
    uint16_t *steps;
    int64_t depth, outputs;
} Squeeze;

static int64_t steps_room(Squeeze q) { return panels_of(q.outputs) * steps_of(q.depth) * TILE_STEP; }

/* Rows of bfloat16 values, which lie `stride` apart, through a squeeze, in tiles. */
static void squeeze_in_tiles(Squeeze q, const uint16_t *rows, int64_t stride, int64_t count, uint16_t *out) {
    float block[TILE_BLOCK * TILE_BLOCK];
    for (int64_t j = 0; j < q.outputs; j += TILE_BLOCK)
        for (int64_t r = 0; r < count; r += TILE_BLOCK) {
            int64_t columns = min_of(TILE_BLOCK, q.outputs - j), left = min_of(TILE_BLOCK, count - r);
            Run run = {rows + r * stride, stride, steps_of(q.depth)};
            tile_products(&run, 1, q.steps + j * steps_of(q.depth) * TILE_DEPTH, left, columns, block);
            for (int64_t i = 0; i < left; i++) {
                float *sums = block + i * TILE_BLOCK;
                if (q.bias)
                    for (int64_t c = 0; c < columns; c++) sums[c] += q.bias[j + c];
                narrow(sums, columns, out + (r + i) * q.outputs + j);
            }
        }
}

/* Whether the values of X^w at these samples are finite, and far from the largest. */
static int tame(Shape s, const Sample *all, int64_t count) {
    for (int64_t k = 0; k < count; k++)
        for (int64_t c = 0; c < s.channels; c++) {
            float mean = all[k].mean[c], slope = all[k].slope[c], shift = all[k].shift[c];
            if (!(fabsf(mean) < 1e30f && all[k].rstd[c] > 1e-30f && isfinite(slope) && isfinite(shift))) return 0;
        }
    return 1;
}

/* SRU and both squeezes: out_up = up * X^w[:cut] + bias_up and out_low = low * pool(X^w[cut:]) + bias_low, (N,
 * squeezed_up, H, W) and (N, squeezed_low, H', W'), with the weights up and low in panels and NULL for no bias. The pool
 * averages windows of pool_height x pool_width, cut off where the image ends; 1 and 1 for none. mean and rstd: (N,
 * groups). */
int sru_squeeze(const Map *x, const float *scale, const float *shift, const float *up, const float *low,
                const float *bias_up, const float *bias_low, int64_t samples, int64_t channels, int64_t height,
                int64_t width, int64_t groups, double eps, float threshold, int hard, int64_t cut, int64_t squeezed_up,
                int64_t squeezed_low, int64_t pool_height, int64_t pool_width, int bf16, int threads, Map *out_up,
                Map *out_low, float *mean, float *rstd) {
    int64_t positions = height * width, pooled = pool_height * pool_width > 1;
    /* Weights that do not fill a step leave tiles half empty: floats are faster then. */
    int64_t tiles = bf16 == IN_TILES && tiles_granted() && min_of(cut, channels - cut) >= TILE_DEPTH;
    int64_t rows_at_once = tiles ? TILE_BLOCK : BLOCK_ROWS;
    int64_t step = pooled ? pool_height * width : rows_at_once, blocks = (positions + step - 1) / step;
    int64_t columns = (width + pool_width - 1) / pool_width; /* of out_low, whose lines are the blocks */
    Shape s = {samples, channels, positions, 1};
    Gate g = {groups, threshold, hard};
    int64_t at_once = samples_at_once(s, bf16), depth = channels - cut;
    int64_t of_means = step * channels, of_out = of_means + (pooled ? columns * depth : 0);
    int64_t of_x = of_out + (bf16 ? max_of(step, columns) * max_of(squeezed_up, squeezed_low) : 0);
    int64_t room = max_of(of_x + (bf16 ? step * channels : 0), chunk_room(s, bf16));
    Squeeze q_up = {up, bias_up, NULL, cut, squeezed_up}, q_low = {low, bias_low, NULL, depth, squeezed_low};
    /* X^w and, behind it, its pooled lower part; a block of tiles reads rows and steps that are not there. */
    int64_t of_pooled = whole_lines((step + TILE_BLOCK) * channels + TILE_DEPTH);
    int64_t narrow_room = of_pooled + (pooled ? whole_lines((columns + TILE_BLOCK) * depth + TILE_DEPTH) : 0);
    float *scratch = malloc(threads * room * sizeof(float));
    uint16_t *narrowed = tiles ? tile_memory(threads * narrow_room + steps_room(q_up) + steps_room(q_low)) : NULL;
    if (narrowed) memset(narrowed, 0, threads * narrow_room * sizeof(uint16_t));
    Sample *all = make_samples(s, at_once);
    int failed = !scratch || !all || (tiles && !narrowed);
    if (tiles && !failed) {
        q_up.steps = narrowed + threads * narrow_room;
        q_low.steps = q_up.steps + steps_room(q_up);
        panels_in_steps(up, panels_of(squeezed_up), cut, q_up.steps);
        panels_in_steps(low, panels_of(squeezed_low), depth, q_low.steps);
    }
    for (int64_t n = 0; n < samples && !failed; n += at_once) {
        int64_t count = min_of(at_once, samples - n);
        measure(s, g, x, bf16, scale, shift, eps, n, count, threads, scratch, room, all, mean, rstd);
        int in_tiles = tiles && tame(s, all, count);
#pragma omp parallel num_threads(threads)
        {
            if (in_tiles) begin_tiles();
#pragma omp for schedule(static) nowait /* the region ends here; ONNX Runtime's threads know no other barrier */
            for (int64_t i = 0; i < count * blocks; i++) {
                int64_t k = i / blocks, first = i % blocks * step, rows = min_of(step, positions - first);
                float *own = scratch + thread_number() * room, *means = own + of_means;
                int64_t at = (n + k) * positions + first, lows = pooled ? columns : rows;
                int64_t to_up = at * squeezed_up;
                int64_t to_low = (pooled ? ((n + k) * blocks + i % blocks) * columns : at) * squeezed_low;
                gate_chunk(s, g, values_at(x, bf16, at * channels, rows * channels, own + of_x), 0, rows, all[k], own);
                if (pooled) pool_lines(own + cut, width, channels, depth, rows / width, pool_width, means);
                if (in_tiles) {
                    uint16_t *narrow_rows = narrowed + thread_number() * narrow_room, *pooled_rows = narrow_rows + of_pooled;
                    narrow(own, rows * channels, narrow_rows);
                    if (pooled) narrow(means, columns * depth, pooled_rows);
                    squeeze_in_tiles(q_up, narrow_rows, channels, rows, (uint16_t *)out_up + to_up);
                    squeeze_in_tiles(q_low, pooled ? pooled_rows : narrow_rows + cut, pooled ? depth : channels, lows,
                                     (uint16_t *)out_low + to_low);
                    continue;
                }
                float *to = place_at(out_up, bf16, to_up, own + of_out);
                gemm(bias_up, own, channels, rows, up, cut, squeezed_up, to, squeezed_up);
                put(out_up, bf16, to_up, rows * squeezed_up, to);
                to = place_at(out_low, bf16, to_low, own + of_out);
                gemm(bias_low, pooled ? means : own + cut, pooled ? depth : channels, lows, low, depth, squeezed_low, to,
                     squeezed_low);
                put(out_low, bf16, to_low, lows * squeezed_low, to);
            }
            if (in_tiles) end_tiles();
        }
    }
    free(scratch);
    free(narrowed);
    if (all) free_samples(all);
    return failed;
}

/* Both squeezes' weights, transposed and in panels, and the gradients of their outputs at some positions. */
typedef struct {
    const float *up, *low, *grad_up, *grad_low;
    int64_t cut, squeezed_up, squeezed_low;
} Squeezes;

/* The gradient of X^w at `rows` positions. */
static void reconstructed_grad(Shape s, Squeezes q, int64_t rows, float *grad) {
    gemm(NULL, q.grad_up, q.squeezed_up, rows, q.up, q.squeezed_up, q.cut, grad, s.channels);
    gemm(NULL, q.grad_low, q.squeezed_low, rows, q.low, q.squeezed_low, s.channels - q.cut, grad + q.cut, s.channels);
}

/* The gradients of sru_squeeze's inputs from those of its outputs, (N, squeezed_up, H*W) and (N, squeezed_low, H*W). The
 * weights come transposed, (cut, squeezed_up) and (C - cut, squeezed_low), in panels. Positions are cut into PARTS
 * parts, whatever the number of threads: each part sums up weight gradients of its own.
 *
 * grad_x: as x; grad_scale, grad_shift: (C); grad_weight_up: (squeezed_up, cut); grad_weight_low: (squeezed_low,
 * C - cut). Returns 0, or 1 without memory. */
#define PARTS 16
int sru_squeeze_backward(const Map *grad_up, const Map *grad_low, const Map *x, const float *scale, const float *shift,
                         const float *mean, const float *rstd, const float *up, const float *low, int64_t samples,
                         int64_t channels, int64_t positions, int64_t groups, float threshold, int hard, int64_t cut,
                         int64_t squeezed_up, int64_t squeezed_low, int bf16, int threads, Map *grad_x,
                         double *grad_scale, double *grad_shift, float *grad_weight_up, float *grad_weight_low) {
    Shape s = {samples, channels, positions, 1};
    Gate g = {groups, threshold, hard};
    int64_t at_once = block_samples(s), chunks = chunk_count(s), step = chunk_positions(s);
    int64_t weights_up = squeezed_up * cut, weights = weights_up + squeezed_low * (channels - cut);
    int64_t of_x = 2 * BLOCK_ROWS * channels + STEP, of_up = of_x + (bf16 ? BLOCK_ROWS * channels : 0);
    int64_t of_low = of_up + (bf16 ? BLOCK_ROWS * squeezed_up : 0), values = channels * positions;
    int64_t room = max_of(of_low + (bf16 ? BLOCK_ROWS * squeezed_low : 0), chunk_room(s, bf16));
    float *scratch = malloc(threads * room * sizeof(float)), *parts = calloc(PARTS * weights, sizeof(float));
    /* X's gradient before the means over the groups are subtracted: not rounded twice. */
    float *direct = bf16 ? malloc(at_once * values * sizeof(float)) : NULL;
    Sample *all = make_samples(s, at_once);
    int failed = !scratch || !parts || !all || (bf16 && !direct);
    memset(grad_scale, 0, channels * sizeof(double));
    memset(grad_shift, 0, channels * sizeof(double));
    for (int64_t n = 0; n < samples && !failed; n += at_once) {
        int64_t count = min_of(at_once, samples - n), tasks = count * chunks;
        for (int64_t k = 0; k < count; k++)
            spread(s, g, scale, shift, mean + (n + k) * groups, rstd + (n + k) * groups, all[k]);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t part = 0; part < PARTS; part++)
            for (int64_t i = tasks * part / PARTS; i < tasks * (part + 1) / PARTS; i++) {
                int64_t k = i / chunks, chunk = i % chunks, last = min_of((chunk + 1) * step, positions);
                double *sum = all[k].sum + chunk * channels, *product = all[k].product + chunk * channels;
                float *own = scratch + thread_number() * room, *reconstructed = own + BLOCK_ROWS * channels;
                memset(sum, 0, channels * sizeof(double));
                memset(product, 0, channels * sizeof(double));
                for (int64_t first = chunk * step; first < last; first += BLOCK_ROWS) {
                    int64_t rows = min_of(BLOCK_ROWS, last - first), at = (n + k) * positions + first;
                    Squeezes q = {up, low, values_at(grad_up, bf16, at * squeezed_up, rows * squeezed_up, own + of_up),
                                  values_at(grad_low, bf16, at * squeezed_low, rows * squeezed_low, own + of_low), cut,
                                  squeezed_up, squeezed_low};
                    const float *x_rows = values_at(x, bf16, at * channels, rows * channels, own + of_x);
                    reconstructed_grad(s, q, rows, own);
                    pair_grads_of_rows(s, g, x_rows, own, rows, all[k], reconstructed,
                                       bf16 ? direct + (at - n * positions) * channels : (float *)grad_x + at * channels,
                                       sum, product);
                    add_products(q.grad_up, squeezed_up, squeezed_up, reconstructed, channels, cut, rows,
                                 parts + part * weights);
                    add_products(q.grad_low, squeezed_low, squeezed_low, reconstructed + cut, channels, channels - cut,
                                 rows, parts + part * weights + weights_up);
                }
            }
        for (int64_t k = 0; k < count; k++) finish_grad_sums(s, g, scale, all[k], grad_scale, grad_shift);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t k = i / chunks, first = i % chunks * step, at = (n + k) * positions + first;
            int64_t rows = min_of(step, positions - first), count = rows * channels;
            float *to = bf16 ? direct + (at - n * positions) * channels : (float *)grad_x + at * channels;
            finish_grads(s, values_at(x, bf16, at * channels, count, scratch + thread_number() * room), rows, all[k], to);
            put(grad_x, bf16, at * channels, count, to);
        }
    }
    for (int64_t i = 0; i < weights && !failed; i++) {
        double total = 0;
        for (int64_t part = 0; part < PARTS; part++) total += parts[part * weights + i];
        *(i < weights_up ? grad_weight_up + i : grad_weight_low + i - weights_up) = (float)total;
    }
    free(scratch);
    free(parts);
    free(direct);
    if (all) free_samples(all);
    return failed;
}
