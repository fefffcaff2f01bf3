/* What AVX2 gives at most; for comparison. Without VNNI the shortest way from bytes to sums of 32 bits is maddubs, madd
 * and add. */
#if defined(__x86_64__)
#include "common/kernels/avx2_inline.h"
#include "common/kernels/variants.h"

#define CHAINS 12

uint64_t peak_int8_avx2(uint64_t rounds)
{
    __m256i sum[CHAINS];
    UNROLL
    for (int j = 0; j < CHAINS; j++)
        sum[j] = _mm256_set1_epi32(j);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i w = _mm256_set1_epi8(3), x = _mm256_set1_epi8(-2);
    for (uint64_t i = 0; i < rounds; i++) {
        UNROLL
        for (int j = 0; j < CHAINS; j++) {
            KEEP(x); /* or one product would serve all chains */
            sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones));
            KEEP(sum[j]);
        }
    }
    UNROLL
    for (int j = 0; j < CHAINS; j++)
        __asm__ volatile("" : : "x"(sum[j])); /* used: the loop stays */
    return rounds * CHAINS * 64;
}

uint64_t peak_f32_avx2(uint64_t rounds)
{
    __m256 sum[CHAINS];
    UNROLL
    for (int j = 0; j < CHAINS; j++)
        sum[j] = _mm256_set1_ps((float)j);
    const __m256 w = _mm256_set1_ps(0.5f), x = _mm256_set1_ps(1.0f);
    for (uint64_t i = 0; i < rounds; i++) {
        UNROLL
        for (int j = 0; j < CHAINS; j++) {
            sum[j] = _mm256_fmadd_ps(sum[j], w, x);
            KEEP(sum[j]);
        }
    }
    UNROLL
    for (int j = 0; j < CHAINS; j++)
        __asm__ volatile("" : : "x"(sum[j])); /* used: the loop stays */
    return rounds * CHAINS * 16;
}

uint64_t peak_read_avx2(const void *data, size_t bytes)
{
    const __m256i *p = data;
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                      _mm256_setzero_si256()};
    for (size_t i = 0; i + 4 <= bytes / sizeof *p; i += 4) {
        UNROLL
        for (size_t j = 0; j < 4; j++)
            sum[j] = _mm256_add_epi64(sum[j], _mm256_load_si256(p + i + j));
    }
    sum[0] = _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3]));
    uint64_t out[4];
    _mm256_storeu_si256((__m256i *)(void *)out, sum[0]);
    return out[0] + out[1] + out[2] + out[3];
}
#else
typedef int not_for_this_machine;
#endif
