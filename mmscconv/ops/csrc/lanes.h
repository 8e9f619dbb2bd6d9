/* Vectors as long as the target's registers: longer ones would lie on the stack. */
#ifndef MMSCCONV_LANES_H
#define MMSCCONV_LANES_H

#include "common.h"

#ifdef __AVX512F__
#define LANES 16
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define LANES 4
#else
#define LANES 8
#endif

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Mask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#endif
