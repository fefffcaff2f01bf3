/* Rows on their way into a product, eight values at a time. See rows_ref.c. */
#if defined(__x86_64__)
#include "common/base/check.h"
#include "common/kernels/avx2_inline.h"
#include "common/kernels/variants.h"

#define BLOCK 32u

void quantize_row_avx2(const float *x, uint32_t k, int8_t *q, float *d)
{
    assert(k % BLOCK == 0);
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    const __m256i unshuffle = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (uint32_t b = 0; b < k / BLOCK; b++, x += BLOCK, q += BLOCK) {
        __m256 v[4];
        __m256i top = _mm256_setzero_si256();
        UNROLL
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_castps_si256(v[i]), no_sign));
        }
        __m128i top4 = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
        top4 = _mm_max_epu32(top4, _mm_shuffle_epi32(top4, 0x4e));
        top4 = _mm_max_epu32(top4, _mm_shuffle_epi32(top4, 0xb1));
        uint32_t bits = (uint32_t)_mm_cvtsi128_si32(top4);
        if (bits >= 0x7f800000u) {
            d[b] = f32_from_bits(0x7fc00000u);
            memset(q, 0, BLOCK);
            continue;
        }
        float amax = f32_from_bits(bits);
        if (!(amax >= 0x1p-100f)) amax = 0.0f;
        d[b] = amax / 127.0f;
        const __m256 id = _mm256_set1_ps(amax > 0.0f ? 127.0f / amax : 0.0f);
        __m256i n[4];
        UNROLL
        for (int i = 0; i < 4; i++)
            n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], id)); /* half to even */
        /* Packing works on halves of registers: undo its order at the end. */
        __m256i words =
            _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
        _mm256_storeu_si256((__m256i *)(void *)q, _mm256_permutevar8x32_epi32(words, unshuffle));
    }
}

void round_bf16_avx2(const float *x, size_t n, uint16_t *out)
{
    const __m256i quiet_above = _mm256_set1_epi32(0x7f800000);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i u = _mm256_loadu_si256((const __m256i *)(const void *)(x + i));
        __m256i magnitude = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
        __m256i nan = _mm256_cmpgt_epi32(magnitude, quiet_above);
        __m256i high = _mm256_srli_epi32(u, 16);
        __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd));
        rounded = _mm256_srli_epi32(rounded, 16);
        high = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        __m256i words = _mm256_blendv_epi8(rounded, high, nan);
        words = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x88);
        _mm_storeu_si128((__m128i *)(void *)(out + i), _mm256_castsi256_si128(words));
    }
    for (; i < n; i++)
        out[i] = bf16_from_f32(x[i]);
}
#else
typedef int not_for_this_machine;
#endif
