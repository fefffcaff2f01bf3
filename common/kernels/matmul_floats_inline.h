/* matmul_floats_inline.h - inside the matmul_<vector set>.c files only: weights of F32, BF16, F16 and F8 panels as f32, eight at
 * a time, and panels unpacked to f32. */
#ifndef MOESAIC_KERNELS_MATMUL_FLOATS_INLINE_H
#define MOESAIC_KERNELS_MATMUL_FLOATS_INLINE_H

#include "common/kernels/matmul_inline.h"

/* Bytes of a panel per k. */
ALWAYS_INLINE size_t float_bytes(const enum dtype t)
{
    return t == DTYPE_F32 ? 64 : t == DTYPE_F8_E4M3 ? 16 : 32;
}

/* Lines to come are fetched when k enters one. */
ALWAYS_INLINE bool enters_line(const enum dtype t, uint32_t k)
{
    return (k * float_bytes(t)) % PANEL_LINE == 0;
}

/* 16 codes of F8 as f16, 2^-8 too small: sign, 4 bits of exponent and 3 of fraction land where f16 has its own, subnormals
 * included. Codes of NaN need no care (pack.c). */
ALWAYS_INLINE __m256i f8_as_f16_avx2(__m128i codes)
{
    __m256i v = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    return _mm256_and_si256(v, _mm256_set1_epi16((int16_t)0xbf80u));
}

/* Weights of features 8h .. 8h + 7 at k; BF16: of an even k and of k + 1 (odd). */
ALWAYS_INLINE void float_weights_avx2(const enum dtype t, const uint8_t *panel, uint32_t panel_k,
                                      uint32_t k, __m256 out[2], const bool odd)
{
    const uint8_t *line = panel + k * float_bytes(t);
    if (t == DTYPE_F8_E4M3) {
        const uint8_t *scales = panel + panel_f8_scales(panel_k) + k / F8_BLOCK * PANEL_LINE;
        const __m256i halves = f8_as_f16_avx2(_mm_load_si128((const __m128i *)(const void *)line));
        const __m256 unit = _mm256_set1_ps(256.0f);
        for (int h = 0; h < 2; h++) {
            const __m128i half =
                h ? _mm256_extracti128_si256(halves, 1) : _mm256_castsi256_si128(halves);
            out[h] = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtph_ps(half), unit),
                                   _mm256_load_ps((const float *)(const void *)(scales + 32 * h)));
        }
        return;
    }
    for (int h = 0; h < 2; h++) {
        if (t == DTYPE_F32) out[h] = _mm256_load_ps((const float *)(const void *)(line + 32 * h));
        if (t == DTYPE_F16)
            out[h] =
                _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)(line + 16 * h)));
        if (t == DTYPE_BF16) {
            const __m256i pair = _mm256_load_si256((const __m256i *)(const void *)(line + 32 * h));
            out[h] = _mm256_castsi256_ps(
                odd ? _mm256_and_si256(pair, _mm256_set1_epi32((int32_t)0xffff0000u))
                    : _mm256_slli_epi32(pair, 16));
        }
    }
}

ALWAYS_INLINE void unpack_floats(const enum dtype t, const uint8_t *panel, uint32_t panel_k,
                                 uint32_t k0, uint32_t k, uint8_t *out)
{
    const uint32_t step = t == DTYPE_BF16 ? 2 : 1;
    for (uint32_t i = 0; i < k; i += step)
        for (uint32_t odd = 0; odd < step; odd++) {
            float *line = (float *)(void *)(out + (size_t)(i + odd) * PANEL_LINE);
            __m256 w[2];
            float_weights_avx2(t, panel, panel_k, k0 + i, w, odd);
            _mm256_store_ps(line, w[0]);
            _mm256_store_ps(line + 8, w[1]);
        }
}

#endif
