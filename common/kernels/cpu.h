/* cpu.h - what this machine's instruction set offers, as far as a kernel variant asks. Any thread. */
#ifndef MOESAIC_KERNELS_CPU_H
#define MOESAIC_KERNELS_CPU_H

#include <stdint.h>

enum cpu_feature {
    CPU_AVX2 = 1 << 0,
    CPU_FMA = 1 << 1,
    CPU_F16C = 1 << 2,
};

/* The features that both the CPU has and the operating system saves the registers of. */
uint32_t cpu_features(void);

/* Name of the lowest feature in `set`, e.g. "AVX2"; "nothing" for 0. Static. */
const char *cpu_feature_name(uint32_t set);

#endif
