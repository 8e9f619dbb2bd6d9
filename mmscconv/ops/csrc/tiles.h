/* Products of bfloat16 matrices with sums in float, in blocks of 32 rows and 32 columns: in AMX's tiles or, on other
 * processors, in plain C, which gives the same but for the order of the sums and is there for tests alone.
 *
 * A row's values are read in whole steps of TILE_DEPTH. What lies behind a row's last value must be finite: its weights
 * are zero. */
#ifndef MMSCCONV_TILES_H
#define MMSCCONV_TILES_H

#include "gemm.h"
#include "maps.h"
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

#define TILE_BLOCK 32                           /* rows and columns of a block: PANEL */
#define TILE_DEPTH 32                           /* values of a row in a tile */
#define TILE_STEP (TILE_DEPTH * TILE_BLOCK)     /* weights of one step */

/* The columns [from `a`, `steps` times TILE_DEPTH) of the left matrix, whose rows lie `stride` values apart. */
typedef struct {
    const uint16_t *a;
    int64_t stride, steps;
} Run;

static inline int64_t steps_of(int64_t depth) { return (depth + TILE_DEPTH - 1) / TILE_DEPTH; }

/* A multiple of 64 bytes, for tiles are read by cache lines. */
static inline int64_t whole_lines(int64_t values) { return (values + 31) / 32 * 32; }

/* Whether every value is a number. */
static inline int all_finite(const uint16_t *values, int64_t count) {
    int odd = 0;
#pragma omp simd reduction(| : odd)
    for (int64_t i = 0; i < count; i++) odd |= (values[i] & 0x7F80) == 0x7F80;
    return !odd;
}

#if HAS_TILES
/* Whether Linux lets this process use the tiles, which it has to ask for: without, they end the process. */
static inline int tiles_granted(void) {
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

static inline void begin_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&config);
}

/* Other code in this thread, and the kernel when it switches tasks, find the tiles unused again. */
static inline void end_tiles(void) { _tile_release(); }

static inline __attribute__((always_inline)) void tiles_of(const Run *runs, int count, const uint16_t *b, float *out,
                                                           const int two_rows, const int two_columns) {
    _tile_zero(0);
    if (two_columns) _tile_zero(1);
    if (two_rows) _tile_zero(2);
    if (two_rows && two_columns) _tile_zero(3);
    for (int i = 0; i < count; i++) {
        const uint16_t *a = runs[i].a;
        int64_t bytes = runs[i].stride * 2;
        for (int64_t step = 0; step < runs[i].steps; step++, a += TILE_DEPTH, b += TILE_STEP) {
            _tile_loadd(6, b, 64);
            _tile_loadd(4, a, bytes);
            _tile_dpbf16ps(0, 4, 6);
            if (two_columns) {
                _tile_loadd(7, b + TILE_STEP / 2, 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (two_rows) {
                _tile_loadd(5, a + 16 * runs[i].stride, bytes);
                _tile_dpbf16ps(2, 5, 6);
                if (two_columns) _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, out, 4 * TILE_BLOCK);
    if (two_columns) _tile_stored(1, out + 16, 4 * TILE_BLOCK);
    if (two_rows) _tile_stored(2, out + 16 * TILE_BLOCK, 4 * TILE_BLOCK);
    if (two_rows && two_columns) _tile_stored(3, out + 16 * TILE_BLOCK + 16, 4 * TILE_BLOCK);
}
#else
static inline int tiles_granted(void) { return 1; }
static inline void begin_tiles(void) {}
static inline void end_tiles(void) {}
#endif

/* out[r][j] = sum over the runs' values of a[r][k] * b[k][j], for at least `rows` rows and `columns` columns of a block;
 * b: one TILE_STEP after the other, as weights_in_steps writes them; out: rows of TILE_BLOCK values. In a parallel region,
 * between begin_tiles and end_tiles. */
static inline void tile_products(const Run *runs, int count, const uint16_t *b, int64_t rows, int64_t columns, float *out) {
#if HAS_TILES
    __asm__ volatile("" ::: "memory"); /* GCC 12 does not know that a tile is loaded from memory */
    if (rows > 16 && columns > 16)
        tiles_of(runs, count, b, out, 1, 1);
    else if (rows > 16)
        tiles_of(runs, count, b, out, 1, 0);
    else if (columns > 16)
        tiles_of(runs, count, b, out, 0, 1);
    else
        tiles_of(runs, count, b, out, 0, 0);
#else
    (void)columns;
    memset(out, 0, rows * TILE_BLOCK * sizeof(float));
    for (int i = 0; i < count; i++)
        for (int64_t step = 0; step < runs[i].steps; step++, b += TILE_STEP)
            for (int64_t r = 0; r < rows; r++) {
                float a[TILE_DEPTH], w[TILE_STEP];
                widen(runs[i].a + r * runs[i].stride + step * TILE_DEPTH, TILE_DEPTH, a);
                widen(b, TILE_STEP, w);
                for (int64_t at = 0; at < TILE_STEP; at++) {
                    int64_t half = at / (TILE_STEP / 2), pair = at / 32 % 16, column = at / 2 % 16;
                    out[r * TILE_BLOCK + half * 16 + column] += a[2 * pair + at % 2] * w[at];
                }
            }
#endif
}

/* Values of `low` and `high`, rounded to bfloat16, side by side. */
static inline void pairs_of(const float *restrict low, const float *restrict high, uint32_t *restrict out) {
    uint16_t even[PANEL], odd[PANEL];
    narrow(low, PANEL, even);
    narrow(high, PANEL, odd);
    for (int half = 0; half < 2; half++)
#pragma omp simd
        for (int j = 0; j < PANEL / 2; j++)
            out[half * (TILE_STEP / 4) + j] = even[half * 16 + j] | (uint32_t)odd[half * 16 + j] << 16;
}

/* `depth` rows of a panel of gemm.h, (depth, PANEL), in steps, rounded to bfloat16 and filled up with zeros: of each half
 * of the columns 16 pairs of rows, [half][pair][column][2]. Returns what follows in `out`. */
static inline uint16_t *weights_in_steps(const float *panel, int64_t depth, uint16_t *out) {
    static const float zeros[PANEL];
    for (int64_t k = 0; k < steps_of(depth) * TILE_DEPTH; k += 2) {
        const float *low = k < depth ? panel + k * PANEL : zeros, *high = k + 1 < depth ? panel + (k + 1) * PANEL : zeros;
        pairs_of(low, high, (uint32_t *)(out + k / TILE_DEPTH * TILE_STEP + k % TILE_DEPTH / 2 * 32));
    }
    return out + steps_of(depth) * TILE_STEP;
}

static inline void panels_in_steps(const float *packed, int64_t panels, int64_t depth, uint16_t *out) {
    for (int64_t i = 0; i < panels; i++) out = weights_in_steps(packed + i * depth * PANEL, depth, out);
}

/* Memory for `count` values that begins at a cache line, or NULL without memory. */
static inline uint16_t *tile_memory(int64_t count) { return aligned_alloc(64, whole_lines(count) * sizeof(uint16_t)); }

#endif
