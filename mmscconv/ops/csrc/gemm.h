/* Small matrix products for the 1x1 convolutions inside of the deploy kernels: out[r][j] = sum_k a[r][k] * w[j][k]. */
#ifndef MMSCCONV_GEMM_H
#define MMSCCONV_GEMM_H

#include "common.h"

/* TILE_ROWS x 2 vectors of sums fill the registers of AVX-512 or AVX2, with room for what is read. */
#ifdef __AVX512F__
#define LANES 16
#define TILE_ROWS 12
#else
#define LANES 8
#define TILE_ROWS 6
#endif
#define PANEL (2 * LANES)
#define BLOCK_ROWS 24 /* rows that are worked on while they lie in the first caches */

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline int64_t panels_of(int64_t columns) { return (columns + PANEL - 1) / PANEL; }

/* [columns][depth] to [panel][depth][PANEL], filled up with zeros. Aligned, for a load that crosses two cache lines
 * costs twice. */
static inline float *pack(const float *weight, int64_t columns, int64_t depth) {
    int64_t bytes = max_of(1, panels_of(columns) * depth) * PANEL * sizeof(float);
    float *packed = aligned_alloc(PANEL * sizeof(float), bytes);
    if (packed)
        for (int64_t j = 0; j < columns; j += PANEL)
            for (int64_t k = 0; k < depth; k++)
                for (int64_t i = 0; i < PANEL; i++)
                    packed[j * depth + k * PANEL + i] = j + i < columns ? weight[(j + i) * depth + k] : 0.f;
    return packed;
}

static inline __attribute__((always_inline)) void tile(const float *a, int64_t stride, const float *panel,
                                                       int64_t depth, float *out, int64_t out_stride, int64_t columns,
                                                       const int rows, const int vectors) {
    Vec sum[TILE_ROWS][2] = {0};
    for (int64_t k = 0; k < depth; k++) {
        Vec low = *(const Vec *)(panel + k * PANEL), high = *(const Vec *)(panel + k * PANEL + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            sum[r][0] += a[r * stride + k] * low;
            if (vectors > 1) sum[r][1] += a[r * stride + k] * high;
        }
    }
    for (int r = 0; r < rows; r++) {
        if (columns >= vectors * LANES) {
            *(Vec *)(out + r * out_stride) = sum[r][0];
            if (vectors > 1) *(Vec *)(out + r * out_stride + LANES) = sum[r][1];
        } else {
            memcpy(out + r * out_stride, sum[r], columns * sizeof(float));
        }
    }
}

static inline __attribute__((always_inline)) void rows_of_panel(const float *a, int64_t stride, int64_t rows,
                                                                const float *panel, int64_t depth, float *out,
                                                                int64_t out_stride, int64_t columns,
                                                                const int vectors) {
    int64_t r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
        tile(a + r * stride, stride, panel, depth, out + r * out_stride, out_stride, columns, TILE_ROWS, vectors);
    for (; r + 4 <= rows; r += 4)
        tile(a + r * stride, stride, panel, depth, out + r * out_stride, out_stride, columns, 4, vectors);
    for (; r < rows; r++)
        tile(a + r * stride, stride, panel, depth, out + r * out_stride, out_stride, columns, 1, vectors);
}

static inline void gemm(const float *a, int64_t stride, int64_t rows, const float *packed, int64_t depth,
                        int64_t columns, float *out, int64_t out_stride) {
    for (int64_t j = 0; j < columns; j += PANEL) {
        if (columns - j > LANES)
            rows_of_panel(a, stride, rows, packed + j * depth, depth, out + j, out_stride, columns - j, 2);
        else
            rows_of_panel(a, stride, rows, packed + j * depth, depth, out + j, out_stride, columns - j, 1);
    }
}

#endif
