/* Average pooling with windows side by side, channels last. */
#ifndef MMSCCONV_POOL_H
#define MMSCCONV_POOL_H

#include "common.h"

/* pooled[i]: the mean of `channels` numbers over the positions of window i, `pool` columns of `rows` lines of an image;
 * the last window may be narrower. */
static inline void pool_lines(const float *lines, int64_t width, int64_t stride, int64_t channels, int64_t rows,
                              int64_t pool, float *pooled) {
    for (int64_t first = 0; first < width; first += pool, pooled += channels) {
        int64_t last = min_of(first + pool, width);
        float share = 1.f / (float)(rows * (last - first));
        memset(pooled, 0, channels * sizeof(float));
        for (int64_t y = 0; y < rows; y++)
            for (int64_t x = first; x < last; x++) {
                const float *from = lines + (y * width + x) * stride;
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) pooled[c] += from[c];
            }
        for (int64_t c = 0; c < channels; c++) pooled[c] *= share;
    }
}

#endif
