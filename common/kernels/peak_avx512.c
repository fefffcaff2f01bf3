/* What AVX-512 with VNNI gives at most; for comparison. */
#if defined(__x86_64__)
#include "common/kernels/avx2_inline.h"
#include "common/kernels/variants.h"

#define CHAINS 16

/* The loop stays. Through memory: an emulated register is no register. */
#define USED(v) __asm__ volatile("" : : "m"(v))

uint64_t peak_int8_avx512(uint64_t rounds)
{
    __m512i sum[CHAINS];
    UNROLL
    for (int j = 0; j < CHAINS; j++)
        sum[j] = _mm512_set1_epi32(j);
    const __m512i w = _mm512_set1_epi32(0x03030303), x = _mm512_set1_epi32(0x02020202);
    for (uint64_t i = 0; i < rounds; i++) {
        UNROLL
        for (int j = 0; j < CHAINS; j++)
            sum[j] = _mm512_dpbusd_epi32(sum[j], w, x);
    }
    UNROLL
    for (int j = 0; j < CHAINS; j++)
        USED(sum[j]);
    return rounds * CHAINS * 128;
}

uint64_t peak_f32_avx512(uint64_t rounds)
{
    __m512 sum[CHAINS];
    UNROLL
    for (int j = 0; j < CHAINS; j++)
        sum[j] = _mm512_set1_ps((float)j);
    const __m512 w = _mm512_set1_ps(0.5f), x = _mm512_set1_ps(1.0f);
    for (uint64_t i = 0; i < rounds; i++) {
        UNROLL
        for (int j = 0; j < CHAINS; j++)
            sum[j] = _mm512_fmadd_ps(sum[j], w, x);
    }
    UNROLL
    for (int j = 0; j < CHAINS; j++)
        USED(sum[j]);
    return rounds * CHAINS * 32;
}

uint64_t peak_read_avx512(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                      _mm512_setzero_si512()};
    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        UNROLL
        for (size_t j = 0; j < 4; j++)
            sum[j] = _mm512_add_epi64(sum[j], _mm512_load_si512(p + i + 64 * j));
    }
    sum[0] = _mm512_add_epi64(_mm512_add_epi64(sum[0], sum[1]), _mm512_add_epi64(sum[2], sum[3]));
    uint64_t out[8], all = 0;
    _mm512_storeu_si512(out, sum[0]);
    for (int j = 0; j < 8; j++)
        all += out[j];
    return all;
}
#else
typedef int not_for_this_machine;
#endif
