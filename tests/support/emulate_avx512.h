/* emulate_avx512.h - included ahead of *_avx512.c when the build emulates that instruction set (SIMDe), and what SIMDe
 * does not have. For tests alone: it proves bits, not speed. */
#ifndef MOESAIC_TESTS_EMULATE_AVX512_H
#define MOESAIC_TESTS_EMULATE_AVX512_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wcast-qual"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#pragma GCC diagnostic pop

#undef _mm512_cvtph_ps
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepu8_epi32
#undef _mm512_mask_storeu_ps
#undef _mm512_maskz_loadu_ps

#define _mm512_cvtph_ps(v)                                                                         \
    simde_mm512_insertf32x8(                                                                       \
        simde_mm512_castps256_ps512(_mm256_cvtph_ps(_mm256_castsi256_si128(v))),                   \
        _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)), 1)

#define _mm512_cvtepi8_epi32(v)                                                                    \
    simde_mm512_inserti64x4(simde_mm512_castsi256_si512(_mm256_cvtepi8_epi32(v)),                  \
                            _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)), 1)
#define _mm512_cvtepu8_epi32(v)                                                                    \
    simde_mm512_inserti64x4(simde_mm512_castsi256_si512(_mm256_cvtepu8_epi32(v)),                  \
                            _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)), 1)

static inline simde__m512 emulate_cvtepi32_ps(simde__m512i v)
{
    int32_t from[16];
    float to[16];
    simde_mm512_storeu_si512(from, v);
    for (int i = 0; i < 16; i++)
        to[i] = (float)from[i];
    return simde_mm512_loadu_ps(to);
}
#define _mm512_cvtepi32_ps(v) emulate_cvtepi32_ps(v)

static inline void emulate_mask_storeu_ps(float *out, unsigned mask, simde__m512 v)
{
    float from[16];
    simde_mm512_storeu_ps(from, v);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) out[i] = from[i];
}
#define _mm512_mask_storeu_ps(out, mask, v) emulate_mask_storeu_ps(out, mask, v)

#undef _mm512_srai_epi32
#undef _mm512_cvtepu16_epi32
#undef _mm512_shuffle_f32x4

static inline simde__m512i emulate_srai_epi32(simde__m512i v, int count)
{
    int32_t lane[16];
    simde_mm512_storeu_si512(lane, v);
    for (int i = 0; i < 16; i++)
        lane[i] >>= count;
    return simde_mm512_loadu_si512(lane);
}
#define _mm512_srai_epi32(v, count) emulate_srai_epi32(v, count)

#define _mm512_cvtepu16_epi32(v)                                                                   \
    simde_mm512_inserti64x4(                                                                       \
        simde_mm512_castsi256_si512(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v))),             \
        _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1)), 1)

/* Quarters of a, a, b and b, each chosen by two bits. */
static inline simde__m512 emulate_shuffle_f32x4(simde__m512 a, simde__m512 b, unsigned which)
{
    float from[2][16], to[16];
    simde_mm512_storeu_ps(from[0], a);
    simde_mm512_storeu_ps(from[1], b);
    for (unsigned i = 0; i < 16; i++)
        to[i] = from[i / 8][(which >> i / 4 * 2 & 3) * 4 + i % 4];
    return simde_mm512_loadu_ps(to);
}
#define _mm512_shuffle_f32x4(a, b, which) emulate_shuffle_f32x4(a, b, which)

static inline simde__m512 emulate_maskz_loadu_ps(unsigned mask, const float *from)
{
    float to[16] = {0};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) to[i] = from[i];
    return simde_mm512_loadu_ps(to);
}
#define _mm512_maskz_loadu_ps(mask, from) emulate_maskz_loadu_ps(mask, from)

#endif
