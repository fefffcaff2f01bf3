/* avx512_inline.h - inside the *_avx512.c files only: exp and tanh, sixteen at a time. */
#ifndef MOESAIC_KERNELS_AVX512_INLINE_H
#define MOESAIC_KERNELS_AVX512_INLINE_H

#include "common/kernels/avx2_inline.h"

/* exp_reduce, sixteen at a time. */
ALWAYS_INLINE __m512 exp_reduce_avx512(__m512 x, __m512 *t)
{
    const __m512 magic = _mm512_set1_ps(EXP_MAGIC);
    *t = _mm512_fmadd_ps(x, _mm512_set1_ps(EXP_LOG2E), magic);
    __m512 n = _mm512_sub_ps(*t, magic);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-EXP_LN2_HI), x);
    return _mm512_fmadd_ps(n, _mm512_set1_ps(-EXP_LN2_LO), r);
}

ALWAYS_INLINE __m512 exp_poly_avx512(__m512 r)
{
    __m512 p = _mm512_set1_ps(EXP_C6);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C2));
    return _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
}

/* 2^n for n of -126 to 127. */
ALWAYS_INLINE __m512 power_avx512(__m512i n)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}

/* exp_inline. minps and maxps give their second operand when one is NaN. */
ALWAYS_INLINE __m512 exp_avx512(__m512 x)
{
    x = _mm512_min_ps(x, _mm512_set1_ps(EXP_MAX));
    x = _mm512_max_ps(x, _mm512_set1_ps(EXP_MIN));
    __m512 t;
    __m512 r = exp_reduce_avx512(x, &t);
    __m512 p = _mm512_fmadd_ps(exp_poly_avx512(r), r, _mm512_set1_ps(1.0f));
    __m512i i =
        _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(_mm512_set1_ps(EXP_MAGIC)));
    __m512i h = _mm512_srai_epi32(i, 1);
    __m512i l = _mm512_sub_epi32(i, h);
    return _mm512_mul_ps(_mm512_mul_ps(p, power_avx512(h)), power_avx512(l));
}

/* tanh_inline. */
ALWAYS_INLINE __m512 tanh_avx512(__m512 x)
{
    const __m512i sign =
        _mm512_and_si512(_mm512_castps_si512(x), _mm512_castps_si512(_mm512_set1_ps(-0.0f)));
    const __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f);
    __m512 y =
        _mm512_mul_ps(two, _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), sign)));
    y = _mm512_min_ps(_mm512_set1_ps(TANH_MAX), y);
    __m512 t;
    __m512 r = exp_reduce_avx512(y, &t);
    __m512 scale = power_avx512(
        _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(_mm512_set1_ps(EXP_MAGIC))));
    __m512 e =
        _mm512_fmadd_ps(scale, _mm512_mul_ps(exp_poly_avx512(r), r), _mm512_sub_ps(scale, one));
    __m512 y2 = _mm512_div_ps(e, _mm512_add_ps(e, two));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(y2), sign));
}

ALWAYS_INLINE __m512 load_bf16_avx512(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

#endif
