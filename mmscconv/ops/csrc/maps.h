/* Maps in memory: float, or bfloat16 where `bf16` is set. All arithmetic is in float: a block of a bfloat16 map is
 * converted in the caches, once when it is read and once when it is written. */
#ifndef MMSCCONV_MAPS_H
#define MMSCCONV_MAPS_H

#include "common.h"
#include "kernels.h"

#define IN_TILES 2 /* a value of `bf16`: products of bfloat16 values in tiles, tiles.h */

static inline int64_t bytes_of(int64_t values, int bf16) {
    return values * (bf16 ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float));
}

/* How many samples the caches hold. In tiles bfloat16 values stay what they are, which take half the room of floats. */
static inline int64_t samples_at_once(Shape s, int bf16) { return block_samples(s) * (bf16 == IN_TILES ? 2 : 1); }

static inline const Map *from_value(const Map *map, int bf16, int64_t i) { return (const char *)map + bytes_of(i, bf16); }
static inline Map *to_value(Map *map, int bf16, int64_t i) { return (char *)map + bytes_of(i, bf16); }

static inline void widen(const uint16_t *restrict from, int64_t count, float *restrict to) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, sizeof bits);
    }
}

/* To the nearest, ties to even; a NaN stays one. */
static inline void narrow(const float *restrict from, int64_t count, uint16_t *restrict to) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, sizeof bits);
        uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
        to[i] = (uint16_t)(from[i] != from[i] ? 0x7FC0 : rounded);
    }
}

/* The running thread's part of scratch, [threads][room]; NULL without scratch, which float maps do not need. */
static inline float *own_part_of(float *scratch, int64_t room) { return scratch ? scratch + thread_number() * room : NULL; }

/* `count` values from value i on: in place, or converted into scratch. */
static inline const float *values_at(const Map *map, int bf16, int64_t i, int64_t count, float *scratch) {
    if (!bf16) return (const float *)map + i;
    widen((const uint16_t *)map + i, count, scratch);
    return scratch;
}

/* Where the values from value i on are to be written before `put` is called: in place, or in scratch. */
static inline float *place_at(Map *map, int bf16, int64_t i, float *scratch) {
    return bf16 ? scratch : (float *)map + i;
}

static inline void put(Map *map, int bf16, int64_t i, int64_t count, const float *values) {
    if (bf16) narrow(values, count, (uint16_t *)map + i);
}

#define PIECE 16384 /* values that one task converts */

/* All `count` values: the map itself, or a converted copy in room, which has to be as large. */
static inline const float *all_values(const Map *map, int bf16, int64_t count, int threads, float *room) {
    if (!bf16) return map;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += PIECE) widen((const uint16_t *)map + i, min_of(PIECE, count - i), room + i);
    return room;
}

static inline void put_all(Map *map, int bf16, int64_t count, int threads, const float *values) {
    if (!bf16) return;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i += PIECE) put(map, bf16, i, min_of(PIECE, count - i), values + i);
}

#endif
