/* A counter-based generator: the number depends on the key and the counter alone, so that a draw
 * can be repeated anywhere. Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1,
 * 2, 3", SC 2011. */
#ifndef SH_BASE_RNG_H
#define SH_BASE_RNG_H

#include <stdint.h>

/** out = 128 random bits for the 64-bit key and the 128-bit counter. */
void sh_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

#endif
