/* Small matrix products for the convolutions inside of the kernels: out[r][j] = sum_k a[r][k] * w[j][k]. The weights
 * come in panels, [panel][depth][PANEL], padded with zeros: mmscconv/ops/packing.py packs them. */
#ifndef MMSCCONV_GEMM_H
#define MMSCCONV_GEMM_H

#include "common.h"

/* TILE_ROWS x 2 vectors of sums fill the registers of AVX-512, NEON or AVX2, with room for operands. Vectors that are
 * longer than a register would lie on the stack. Of NEON's 16 pairs of sums 10 are used: for more rows, the general
 * registers do not hold the addresses. */
#ifdef __AVX512F__
#define LANES 16
#define TILE_ROWS 14
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define LANES 4
#define TILE_ROWS 10
#else
#define LANES 8
#define TILE_ROWS 6
#endif
#define STEP (2 * LANES)
#define PANEL 32 /* columns of packed weights on every machine */

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef Vec Sums[TILE_ROWS][2];

/* Without this GCC reads a vector again for each product, and loads limit the speed. */
#ifdef __AVX__
#define IN_REGISTERS(a, b) __asm__("" : "+v"(a), "+v"(b))
#elif LANES == 4
#define IN_REGISTERS(a, b) __asm__("" : "+w"(a), "+w"(b))
#else
#define IN_REGISTERS(a, b)
#endif

static inline int64_t panels_of(int64_t columns) { return (columns + PANEL - 1) / PANEL; }

/* sum[r] += sum over k of a[r][k] * b[k], for STEP columns of b or, with one vector, the first half of them. `stride` and
 * `k_stride` are a's from row to row and from k to k, `b_stride` is b's from k to k. */
static inline __attribute__((always_inline)) void accumulate(Vec (*sum)[2], const float *a, int64_t stride,
                                                             int64_t k_stride, const float *b, int64_t b_stride,
                                                             int64_t depth, const int rows, const int vectors) {
    for (int64_t k = 0; k < depth; k++) {
        Vec low = *(const Vec *)(b + k * b_stride), high = low;
        if (vectors > 1) high = *(const Vec *)(b + k * b_stride + LANES);
        IN_REGISTERS(low, high);
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            float factor = a[r * stride + k * k_stride];
            sum[r][0] += factor * low;
            if (vectors > 1) sum[r][1] += factor * high;
        }
    }
}

/* Copies of a known length are one or two instructions; any other is a call, which costs a narrow row more than its
 * products. */
static inline __attribute__((always_inline)) void copy_columns(void *to, const void *from, int64_t columns) {
    if (columns >= STEP)
        memcpy(to, from, STEP * sizeof(float));
    else if (columns == 16)
        memcpy(to, from, 16 * sizeof(float));
    else if (columns == 8)
        memcpy(to, from, 8 * sizeof(float));
    else if (columns == 4)
        memcpy(to, from, 4 * sizeof(float));
    else
        memcpy(to, from, columns * sizeof(float));
}

static inline __attribute__((always_inline)) void tile(const float *start, const float *a, int64_t stride,
                                                       const float *panel, int64_t depth, float *out,
                                                       int64_t out_stride, int64_t columns, const int rows,
                                                       const int vectors) {
    Sums sum = {0};
    if (start)
        for (int r = 0; r < rows; r++) copy_columns(sum[r], start, columns);
    accumulate(sum, a, stride, 1, panel, PANEL, depth, rows, vectors);
    for (int r = 0; r < rows; r++) copy_columns(out + r * out_stride, sum[r], columns);
}

/* Rows of one tile, a constant in each case: `body(R)` becomes code for R rows. */
#if TILE_ROWS == 14
#define FOR_ROWS_OF_TILE(rows, body)                                                                               \
    switch (rows) {                                                                                                \
        ROW_CASES_TO_6(body)                                                                                       \
        ROW_CASE(7, body) ROW_CASE(8, body) ROW_CASE(9, body) ROW_CASE(10, body) ROW_CASE(11, body)                \
        ROW_CASE(12, body) ROW_CASE(13, body) ROW_CASE(14, body)                                                   \
    }
#elif TILE_ROWS == 10
#define FOR_ROWS_OF_TILE(rows, body)                                                                               \
    switch (rows) {                                                                                                \
        ROW_CASES_TO_6(body) ROW_CASE(7, body) ROW_CASE(8, body) ROW_CASE(9, body) ROW_CASE(10, body)              \
    }
#else
#define FOR_ROWS_OF_TILE(rows, body) \
    switch (rows) { ROW_CASES_TO_6(body) }
#endif
#define ROW_CASES_TO_6(body) \
    ROW_CASE(1, body) ROW_CASE(2, body) ROW_CASE(3, body) ROW_CASE(4, body) ROW_CASE(5, body) ROW_CASE(6, body)
#define ROW_CASE(R, body) \
    case R:               \
        body(R);          \
        break;

/* The rows of the next tile, of `left` rows: as even as possible, for a short tile does not fill the pipelines. */
static inline int64_t next_rows(int64_t left) {
    int64_t tiles = (left + TILE_ROWS - 1) / TILE_ROWS;
    return (left + tiles - 1) / tiles;
}

/* start: the initial value of each row (biases), or NULL for zeros. */
static __attribute__((noinline, unused)) void gemm(const float *start, const float *a, int64_t stride, int64_t rows,
                                                   const float *packed, int64_t depth, int64_t columns, float *out,
                                                   int64_t out_stride) {
    for (int64_t j = 0; j < columns; j += STEP) {
        const float *panel = packed + j / PANEL * PANEL * depth + j % PANEL;
        for (int64_t r = 0, count; r < rows; r += count) {
            count = next_rows(rows - r);
#define TILE_OF(R, VECTORS)                                                                                       \
    tile(start ? start + j : NULL, a + r * stride, stride, panel, depth, out + r * out_stride + j, out_stride, \
         columns - j, R, VECTORS)
#define TILE(R)             \
    if (columns - j > LANES) \
        TILE_OF(R, 2);      \
    else                    \
        TILE_OF(R, 1)
            FOR_ROWS_OF_TILE(count, TILE)
#undef TILE
#undef TILE_OF
        }
    }
}

static inline __attribute__((always_inline)) void add_tile(const float *a, int64_t a_stride, const float *b,
                                                           int64_t b_stride, int64_t depth, float *out,
                                                           int64_t out_stride, int64_t columns, const int rows,
                                                           const int vectors) {
    Sums sum = {0};
    for (int r = 0; r < rows; r++) copy_columns(sum[r], out + r * out_stride, columns);
    accumulate(sum, a, 1, a_stride, b, b_stride, depth, rows, vectors);
    for (int r = 0; r < rows; r++) copy_columns(out + r * out_stride, sum[r], columns);
}

/* out[i][j] += sum over rows of a[row][i] * b[row][j]; behind the last row of b, STEP numbers can be read. */
static __attribute__((noinline, unused)) void add_products(const float *a, int64_t a_stride, int64_t a_columns,
                                                           const float *b, int64_t b_stride, int64_t b_columns,
                                                           int64_t rows, float *out) {
    for (int64_t j = 0; j < b_columns; j += STEP)
        for (int64_t i = 0, count; i < a_columns; i += count) {
            count = next_rows(a_columns - i);
#define PRODUCTS_OF(R, VECTORS) \
    add_tile(a + i, a_stride, b + j, b_stride, rows, out + i * b_columns + j, b_columns, b_columns - j, R, VECTORS)
#define PRODUCTS(R)           \
    if (b_columns - j > LANES) \
        PRODUCTS_OF(R, 2);    \
    else                      \
        PRODUCTS_OF(R, 1)
            FOR_ROWS_OF_TILE(count, PRODUCTS)
#undef PRODUCTS
#undef PRODUCTS_OF
        }
}

#endif
