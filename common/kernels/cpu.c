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
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2)) found |= CPU_AVX2;
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
    return "nothing";
}
