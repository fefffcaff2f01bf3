/* rng.h - Philox4x32-10, a counter-based generator: the same (key, counter) gives the same numbers
 * anywhere, so a sampled token depends on (seed, position) alone. Pure, any thread.
 * Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
#ifndef MOESAIC_BASE_RNG_H
#define MOESAIC_BASE_RNG_H

#include <stdint.h>

void rng_philox(uint64_t key, const uint32_t counter[4], uint32_t out[4]);

/* Uniform in [0, 1) with 53 bits; counter = (index low, index high, stream, 0). */
double rng_uniform(uint64_t key, uint64_t index, uint32_t stream);

#endif
