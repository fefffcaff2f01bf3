#include "common/kernels/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

uint32_t cpu_features(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if ((c & bit_OSXSAVE) == 0 || (c & bit_AVX) == 0) return 0;
    /* A CPU may have wide registers that the system does not save on a task switch. */
    uint32_t xcr0, xcr0_high;
    __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
    if ((xcr0 & 6u) != 6u) return 0;

    uint32_t found = 0;
    if (c & bit_FMA) found |= CPU_FMA;
    if (c & bit_F16C) found |= CPU_F16C;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        const uint32_t avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
        if (b & bit_AVX2) found |= CPU_AVX2;
        if ((xcr0 & 0xe6u) == 0xe6u && (b & avx512) == avx512) {
            found |= CPU_AVX512;
            if (c & bit_AVX512VNNI) found |= CPU_VNNI;
        }
    }
#ifdef MOESAIC_EMULATE_AVX512
    found |= CPU_AVX512 | CPU_VNNI;
#endif
    return found;
}
#else
uint32_t cpu_features(void)
{
    return 0;
}
#endif

const char *cpu_feature_name(uint32_t set)
{
    if (set & CPU_AVX2) return "AVX2";
    if (set & CPU_FMA) return "FMA";
    if (set & CPU_F16C) return "F16C";
    if (set & CPU_AVX512) return "AVX-512 (F, BW, DQ, VL)";
    if (set & CPU_VNNI) return "AVX-512 VNNI";
    return "nothing";
}
