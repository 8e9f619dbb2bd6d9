/* Sums over rows of a map in channels last, and affine maps of rows, with the columns in blocks whose sums and factors
 * stay in registers. A narrow row alone would fill a part of a vector: of 4 channels, four rows are one row of 16. */
#ifndef MMSCCONV_ROWS_H
#define MMSCCONV_ROWS_H

#include "common.h"

#define WIDE 16 /* columns of the widest block */

static inline void sums_of_columns(const float *a, int64_t a_row, const float *b, int64_t b_row, int64_t rows,
                                   const int columns, double *sum_a, double *sum_ab) {
    double first[WIDE] = {0}, product[WIDE] = {0};
    for (int64_t i = 0; i < rows; i++, a += a_row, b += b_row) {
#pragma omp simd
        for (int j = 0; j < columns; j++) {
            double v = a[j];
            first[j] += v;
            product[j] += v * b[j];
        }
    }
    for (int j = 0; j < columns; j++) sum_a[j] += first[j], sum_ab[j] += product[j];
}

/* Add the sums of a and of a * b over `rows` rows to sum_a and sum_ab, (width) each. a and b: rows of `width` values,
 * a_row and b_row apart. */
static inline void sums_of_rows(const float *a, int64_t a_row, const float *b, int64_t b_row, int64_t rows, int64_t width,
                                double *sum_a, double *sum_ab) {
    int64_t j = 0;
    for (; j + 16 <= width; j += 16) sums_of_columns(a + j, a_row, b + j, b_row, rows, 16, sum_a + j, sum_ab + j);
    for (; j + 8 <= width; j += 8) sums_of_columns(a + j, a_row, b + j, b_row, rows, 8, sum_a + j, sum_ab + j);
    for (; j + 4 <= width; j += 4) sums_of_columns(a + j, a_row, b + j, b_row, rows, 4, sum_a + j, sum_ab + j);
    for (; j < width; j++) sums_of_columns(a + j, a_row, b + j, b_row, rows, 1, sum_a + j, sum_ab + j);
}

static inline void products_of_columns(const float *a, int64_t a_row, const float *b, int64_t b_row, int64_t rows,
                                       const int columns, double *sum) {
    double product[WIDE] = {0};
    for (int64_t i = 0; i < rows; i++, a += a_row, b += b_row) {
#pragma omp simd
        for (int j = 0; j < columns; j++) product[j] += (double)a[j] * b[j];
    }
    for (int j = 0; j < columns; j++) sum[j] += product[j];
}

/* Add the sums of a * b over `rows` rows to sum, (width); otherwise as above. */
static inline void products_of_rows(const float *a, int64_t a_row, const float *b, int64_t b_row, int64_t rows,
                                    int64_t width, double *sum) {
    int64_t j = 0;
    for (; j + 16 <= width; j += 16) products_of_columns(a + j, a_row, b + j, b_row, rows, 16, sum + j);
    for (; j + 8 <= width; j += 8) products_of_columns(a + j, a_row, b + j, b_row, rows, 8, sum + j);
    for (; j + 4 <= width; j += 4) products_of_columns(a + j, a_row, b + j, b_row, rows, 4, sum + j);
    for (; j < width; j++) products_of_columns(a + j, a_row, b + j, b_row, rows, 1, sum + j);
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
    int64_t j = 0;
#define BLOCK(n) \
    for (; j + n <= width; j += n) \
        combine_columns(x + j, x_row, y + j, y_row, p + j, q + j, r + j, rows, n, to + j, to_row);
    BLOCK(16) BLOCK(8) BLOCK(4) BLOCK(1)
#undef BLOCK
}

#endif
