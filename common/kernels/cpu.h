/* cpu.h - what this machine's instruction set offers, as far as a kernel variant asks. Any thread. */
#ifndef MOESAIC_KERNELS_CPU_H
#define MOESAIC_KERNELS_CPU_H

#include <stdint.h>

enum cpu_feature {
    CPU_AVX2 = 1 << 0,
    CPU_FMA = 1 << 1,
    CPU_F16C = 1 << 2,
    CPU_AVX512 = 1 << 3, /* F, BW, DQ and VL */
    CPU_VNNI = 1 << 4,   /* AVX-512 VNNI */
};

/* The features that both the CPU has and the operating system saves the registers of. A build
 * with MOESAIC_EMULATE_AVX512 says that it has AVX-512 too. */
uint32_t cpu_features(void);

/* Name of the lowest feature in `set`, e.g. "AVX2"; "nothing" for 0. Static. */
const char *cpu_feature_name(uint32_t set);

#endif
