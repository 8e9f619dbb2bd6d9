/* Sums over rows of a map in channels last, and affine maps of rows, with the columns in blocks whose sums and factors
 * stay in registers. A narrow row alone would fill a part of a vector: of 4 channels, four rows are one row of 16. */
#ifndef MMSCCONV_ROWS_H
#define MMSCCONV_ROWS_H

#include "maps.h"

#define WIDE 16 /* columns of the widest block */

/* CALL(n) for blocks of n columns from column j on; n is a constant, so that the loops over columns are unrolled. */
#define IN_BLOCKS(width, CALL)                       \
    int64_t j = 0;                                   \
    for (; j + WIDE <= (width); j += WIDE) CALL(16); \
    for (; j + 8 <= (width); j += 8) CALL(8);        \
    for (; j + 4 <= (width); j += 4) CALL(4);        \
    for (; j < (width); j++) CALL(1);

/* The sums of a * b and, with `both`, those of a. As constants, `columns` and `both` let the sums stay in registers. */
static inline __attribute__((always_inline)) void sums_of_columns(const float *a, int64_t a_row, const float *b,
                                                                  int64_t b_row, int64_t rows, const int columns,
                                                                  const int both, double *sum_a, double *sum_ab) {
    double first[WIDE] = {0}, product[WIDE] = {0};
    for (int64_t i = 0; i < rows; i++, a += a_row, b += b_row) {
#pragma omp simd
        for (int j = 0; j < columns; j++) {
            double v = a[j];
            if (both) first[j] += v;
            product[j] += v * b[j];
        }
    }
    for (int j = 0; j < columns; j++) {
        if (both) sum_a[j] += first[j];
        sum_ab[j] += product[j];
    }
}

/* Add the sums of a and of a * b over `rows` rows to sum_a and sum_ab, (width) each. a and b: rows of `width` values,
 * a_row and b_row apart. */
static __attribute__((noinline, unused)) void sums_of_rows(const float *a, int64_t a_row, const float *b, int64_t b_row,
                                                           int64_t rows, int64_t width, double *sum_a,
                                                           double *sum_ab) {
#define BLOCK(n) sums_of_columns(a + j, a_row, b + j, b_row, rows, n, 1, sum_a + j, sum_ab + j)
    IN_BLOCKS(width, BLOCK)
#undef BLOCK
}

/* Add the sums of a and of a * a to sum and square, (width) each; otherwise as above. */
static __attribute__((noinline, unused)) void moments_of_rows(const float *a, int64_t a_row, int64_t rows,
                                                              int64_t width, double *sum, double *square) {
#define BLOCK(n) sums_of_columns(a + j, a_row, a + j, a_row, rows, n, 1, sum + j, square + j)
    IN_BLOCKS(width, BLOCK)
#undef BLOCK
}

/* Add the sums of a * b alone to sum, (width); otherwise as above. */
static __attribute__((noinline, unused)) void products_of_rows(const float *a, int64_t a_row, const float *b,
                                                               int64_t b_row, int64_t rows, int64_t width,
                                                               double *sum) {
#define BLOCK(n) sums_of_columns(a + j, a_row, b + j, b_row, rows, n, 0, NULL, sum + j)
    IN_BLOCKS(width, BLOCK)
#undef BLOCK
}

static inline void combine_columns(const float *x, int64_t x_row, const float *y, int64_t y_row, const float *p,
                                   const float *q, const float *r, int64_t rows, const int columns, float *to,
                                   int64_t to_row) {
    float of_x[WIDE], of_y[WIDE], constant[WIDE];
    memcpy(of_x, p, columns * sizeof(float));
    memcpy(of_y, q, columns * sizeof(float));
    memcpy(constant, r, columns * sizeof(float));
    for (int64_t i = 0; i < rows; i++, x += x_row, y += y_row, to += to_row) {
#pragma omp simd
        for (int j = 0; j < columns; j++) to[j] = of_x[j] * x[j] + (of_y[j] * y[j] + constant[j]);
    }
}

/* to = p * x + q * y + r in `rows` rows of `width` values; p, q and r: (width). */
static inline void combine_rows(const float *x, int64_t x_row, const float *y, int64_t y_row, const float *p,
                                const float *q, const float *r, int64_t rows, int64_t width, float *to, int64_t to_row) {
#define BLOCK(n) combine_columns(x + j, x_row, y + j, y_row, p + j, q + j, r + j, rows, n, to + j, to_row)
    IN_BLOCKS(width, BLOCK)
#undef BLOCK
}

#endif
