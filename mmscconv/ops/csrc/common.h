/* Shared by all kernels. All data is float; sums over positions run in double and in an order that does not
 * depend on the number of threads, so that the same input gives the same bits.
 *
 * A task is one chunk of positions of one sample, with all its channels; `channels_last` tells their layout. */
#ifndef MMSCCONV_COMMON_H
#define MMSCCONV_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define BLOCK_BYTES (1 << 20)   /* successive passes run over as many samples as the caches hold */
#define CHUNK_POSITIONS 512     /* NCHW: a run of 2 KiB per channel */
#define CHUNK_VALUES 16384      /* channels last: 64 KiB */
#define BLOCK_ROWS 28           /* positions per block that stays in the first caches: whole tiles of gemm.h */

typedef struct {
    int64_t samples, channels, positions;
    int channels_last;
} Shape;

static inline int thread_number(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t block_samples(Shape s) {
    return max_of(1, BLOCK_BYTES / max_of(1, s.channels * s.positions * (int64_t)sizeof(float)));
}

static inline int64_t chunk_positions(Shape s) {
    return s.channels_last ? max_of(1, CHUNK_VALUES / s.channels / BLOCK_ROWS) * BLOCK_ROWS : CHUNK_POSITIONS;
}

static inline int64_t chunk_count(Shape s) {
    int64_t step = chunk_positions(s);
    return (s.positions + step - 1) / step;
}

/* parts: [chunks][C]. */
static inline double over_chunks(Shape s, const double *parts, int64_t c) {
    double total = 0;
    for (int64_t i = 0; i < chunk_count(s); i++) total += parts[i * s.channels + c];
    return total;
}

/* exp(-x) as 2^n * 2^r with a polynomial (minimax, 8e-8) for 2^r, |r| <= 1/2: a few ulp, NaN stays NaN. The compiler
 * can vectorize it; libm's expf only if NaN is given up. */
static inline float exp_of_minus(float x) {
    const float magic = 12582912.f, log2_e = 1.44269504f; /* 1.5 * 2^23: adding it rounds to an integer */
    x = x > 80.f ? 80.f : x; /* beyond, subnormal intermediates cost more than everything else */
    x = x < -80.f ? -80.f : x;
    float shifted = magic - x * log2_e;
    float n = shifted - magic;
    float r = -x * log2_e - n;
    float p = 1.32764701e-3f;
    p = p * r + 9.67554096e-3f;
    p = p * r + 5.55071346e-2f;
    p = p * r + 2.40221202e-1f;
    p = p * r + 6.93146944e-1f;
    p = p * r + 1.00000012f;
    uint32_t bits, exponent; /* the low bits of `shifted` are n */
    memcpy(&bits, &p, sizeof bits);
    memcpy(&exponent, &shifted, sizeof exponent);
    bits += exponent << 23;
    memcpy(&p, &bits, sizeof p);
    return p + (x - x); /* a NaN: its bits may have carried into the exponent of p; a choice would not be vectorized */
}

/* 1 / x for x in [1, 2^127): a guess from the bits and three Newton steps, within an ulp or two. The vector units'
 * division would take most of the kernels' time. */
static inline float reciprocal_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = 0x7EF127EA - bits;
    float y;
    memcpy(&y, &bits, sizeof y);
    y *= 2.f - x * y;
    y *= 2.f - x * y;
    return y * (2.f - x * y);
}

static inline float sigmoid_of(float x) { return reciprocal_of(1.f + exp_of_minus(x)); }

#endif
