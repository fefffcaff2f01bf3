/* What a machine gives at most, in portable C: for comparison, not a kernel that serves. */
#include "common/kernels/variants.h"

#define CHAINS 16

uint64_t peak_int8_ref(uint64_t rounds)
{
    int32_t sum[CHAINS] = {0};
    for (uint64_t i = 0; i < rounds; i++)
        for (int32_t j = 0; j < CHAINS; j++)
            sum[j] = (sum[j] & 0xffff) + (int8_t)i * (int8_t)j;
    for (int j = 0; j < CHAINS; j++)
        __asm__ volatile("" : : "r"(sum[j]));
    return rounds * CHAINS * 2;
}

uint64_t peak_f32_ref(uint64_t rounds)
{
    float sum[CHAINS] = {0};
    for (uint64_t i = 0; i < rounds; i++)
        for (int j = 0; j < CHAINS; j++)
            sum[j] = sum[j] * 0.5f + 1.0f;
    for (int j = 0; j < CHAINS; j++)
        __asm__ volatile("" : : "r"(sum[j]));
    return rounds * CHAINS * 2;
}

uint64_t peak_read_ref(const void *data, size_t bytes)
{
    const uint64_t *p = data;
    uint64_t sum[4] = {0};
    for (size_t i = 0; i + 4 <= bytes / sizeof *p; i += 4)
        for (size_t j = 0; j < 4; j++)
            sum[j] += p[i + j];
    return sum[0] + sum[1] + sum[2] + sum[3];
}
