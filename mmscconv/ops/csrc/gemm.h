/* Small matrix products for the 1x1 convolutions inside of the deploy kernels: out[r][j] = sum_k a[r][k] * w[j][k]. */
#ifndef MMSCCONV_GEMM_H
#define MMSCCONV_GEMM_H

#include "common.h"

#define TILE_ROWS 6 /* 6 x 16 sums fill the 16 vector registers of AVX2, with room for what is read */
#define PANEL 16
#define BLOCK_ROWS 24 /* rows that are worked on while they lie in the first caches */

typedef float Vec __attribute__((vector_size(32), aligned(4), may_alias));

static inline int64_t panels_of(int64_t columns) { return (columns + PANEL - 1) / PANEL; }

/* [columns][depth] to [panel][depth][16], filled up with zeros. */
static inline float *pack(const float *weight, int64_t columns, int64_t depth) {
    float *packed = calloc(panels_of(columns) * depth * PANEL + 1, sizeof(float));
    if (packed)
        for (int64_t j = 0; j < columns; j += PANEL)
            for (int64_t k = 0; k < depth; k++)
                for (int64_t i = 0; i < min_of(PANEL, columns - j); i++)
                    packed[j * depth + k * PANEL + i] = weight[(j + i) * depth + k];
    return packed;
}

static inline __attribute__((always_inline)) void tile(const float *a, int64_t stride, const float *panel,
                                                       int64_t depth, float *out, int64_t out_stride, int64_t columns,
                                                       const int rows) {
    Vec sum[TILE_ROWS][2] = {0};
    for (int64_t k = 0; k < depth; k++) {
        Vec low = *(const Vec *)(panel + k * PANEL), high = *(const Vec *)(panel + k * PANEL + PANEL / 2);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            sum[r][0] += a[r * stride + k] * low;
            sum[r][1] += a[r * stride + k] * high;
        }
    }
    for (int r = 0; r < rows; r++) {
        if (columns >= PANEL) {
            *(Vec *)(out + r * out_stride) = sum[r][0];
            *(Vec *)(out + r * out_stride + PANEL / 2) = sum[r][1];
        } else {
            memcpy(out + r * out_stride, sum[r], columns * sizeof(float));
        }
    }
}

static inline void gemm(const float *a, int64_t stride, int64_t rows, const float *packed, int64_t depth,
                        int64_t columns, float *out, int64_t out_stride) {
    for (int64_t j = 0; j < columns; j += PANEL) {
        const float *panel = packed + j * depth;
        int64_t r = 0;
        for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
            tile(a + r * stride, stride, panel, depth, out + r * out_stride + j, out_stride, columns - j, TILE_ROWS);
        for (; r < rows; r++)
            tile(a + r * stride, stride, panel, depth, out + r * out_stride + j, out_stride, columns - j, 1);
    }
}

#endif
