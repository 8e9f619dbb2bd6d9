/* A 64-bit checksum over the bits of weights, to detect a stale packing. Every step is a bijection of the state for a
 * given word and of the word for a given state: a change of one value always changes the sum. */
#include "maps.h"

#define WORDS 8                  /* summed side by side, in independent chains */
#define STRIPE (WORDS * 8)       /* bytes */
#define BLOCK (256 * STRIPE)     /* bytes: the sum of the blocks' sums does not depend on the number of threads */
#define FEW_BLOCKS 32            /* done before other threads would have started */

static const uint64_t START = 0x9E3779B97F4A7C15u; /* the golden ratio's bits */

static inline uint64_t mixed(uint64_t state, uint64_t word) {
    state = (state ^ word) * 0xD1342543DE82EF95u;
    return state ^ (state >> 32);
}

static inline void add_stripe(const char *data, uint64_t *lanes) {
#pragma omp simd
    for (int i = 0; i < WORDS; i++) {
        uint64_t word;
        memcpy(&word, data + i * 8, 8);
        lanes[i] = mixed(lanes[i], word);
    }
}

/* The last stripe is filled up with zeros. */
static uint64_t sum_of_block(const char *data, int64_t bytes) {
    uint64_t lanes[WORDS], sum = START;
    for (int i = 0; i < WORDS; i++) lanes[i] = START * (uint64_t)(2 * i + 1);
    for (; bytes >= STRIPE; bytes -= STRIPE, data += STRIPE) add_stripe(data, lanes);
    if (bytes) {
        char filled[STRIPE] = {0};
        memcpy(filled, data, bytes);
        add_stripe(filled, lanes);
    }
    for (int i = 0; i < WORDS; i++) sum = mixed(sum, lanes[i]);
    return sum;
}

/* weights: `count` values in memory order; numbers: `amount` more that belong to them, a shape for example; sum: in, the
 * sum of the weights before; out, the sum of all. Returns 0, or 1 without memory. */
int fingerprint(const Map *weights, int64_t count, const int64_t *numbers, int64_t amount, int bf16, int threads,
                int64_t *sum) {
    int64_t bytes = bytes_of(count, bf16), blocks = (bytes + BLOCK - 1) / BLOCK;
    uint64_t *sums = malloc(max_of(1, blocks) * sizeof(uint64_t)), total = mixed((uint64_t)*sum, (uint64_t)count);
    if (!sums) return 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks > FEW_BLOCKS)
    for (int64_t i = 0; i < blocks; i++)
        sums[i] = sum_of_block((const char *)weights + i * BLOCK, min_of(BLOCK, bytes - i * BLOCK));
    for (int64_t i = 0; i < amount; i++) total = mixed(total, (uint64_t)numbers[i]);
    for (int64_t i = 0; i < blocks; i++) total = mixed(total, sums[i]);
    *sum = (int64_t)total;
    free(sums);
    return 0;
}
