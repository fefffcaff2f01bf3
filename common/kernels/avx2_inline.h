/* avx2_inline.h - inside the *_avx2.c files only: pieces that several of them share. */
#ifndef MOESAIC_KERNELS_AVX2_INLINE_H
#define MOESAIC_KERNELS_AVX2_INLINE_H

#include <immintrin.h>

#include "common/kernels/exp_inline.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Loops over registers must disappear, or the registers become memory. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* The sum stays in its register here: gcc otherwise gathers whole-number products to add them up as a tree, and
 * spills them (half the speed). */
#define KEEP(v) __asm__("" : "+x"(v))

/* exp_reduce, eight at a time. */
ALWAYS_INLINE __m256 exp_reduce_avx2(__m256 x, __m256 *t)
{
    const __m256 magic = _mm256_set1_ps(EXP_MAGIC);
    *t = _mm256_fmadd_ps(x, _mm256_set1_ps(EXP_LOG2E), magic);
    __m256 n = _mm256_sub_ps(*t, magic);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-EXP_LN2_HI), x);
    return _mm256_fmadd_ps(n, _mm256_set1_ps(-EXP_LN2_LO), r);
}

ALWAYS_INLINE __m256 exp_poly_avx2(__m256 r)
{
    __m256 p = _mm256_set1_ps(EXP_C6);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C2));
    return _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
}

/* exp_inline, eight at a time. minps and maxps give their second operand when one is NaN. */
ALWAYS_INLINE __m256 exp_avx2(__m256 x)
{
    x = _mm256_min_ps(x, _mm256_set1_ps(EXP_MAX));
    x = _mm256_max_ps(x, _mm256_set1_ps(EXP_MIN));
    __m256 t;
    __m256 r = exp_reduce_avx2(x, &t);
    __m256 p = _mm256_fmadd_ps(exp_poly_avx2(r), r, _mm256_set1_ps(1.0f));
    __m256i i =
        _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(_mm256_set1_ps(EXP_MAGIC)));
    __m256i h = _mm256_srai_epi32(i, 1);
    __m256i l = _mm256_sub_epi32(i, h);
    const __m256i bias = _mm256_set1_epi32(127);
    h = _mm256_slli_epi32(_mm256_add_epi32(h, bias), 23);
    l = _mm256_slli_epi32(_mm256_add_epi32(l, bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(h)), _mm256_castsi256_ps(l));
}

/* tanh_inline, eight at a time. */
ALWAYS_INLINE __m256 tanh_avx2(__m256 x)
{
    const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f)), one = _mm256_set1_ps(1.0f),
                 two = _mm256_set1_ps(2.0f);
    __m256 y = _mm256_mul_ps(two, _mm256_xor_ps(x, sign));
    y = _mm256_min_ps(_mm256_set1_ps(TANH_MAX), y);
    __m256 t;
    __m256 r = exp_reduce_avx2(y, &t);
    __m256i n =
        _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(_mm256_set1_ps(EXP_MAGIC)));
    __m256 scale =
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
    __m256 e =
        _mm256_fmadd_ps(scale, _mm256_mul_ps(exp_poly_avx2(r), r), _mm256_sub_ps(scale, one));
    return _mm256_or_ps(_mm256_div_ps(e, _mm256_add_ps(e, two)), sign);
}

ALWAYS_INLINE __m256 load_bf16_avx2(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* The end of Reduce16 for lanes 0..7 and 8..15: i and i + 8, then i + 4, i + 2, i + 1. */
ALWAYS_INLINE float fold16_avx2(__m256 low, __m256 high)
{
    __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Largest of eight lanes; which zero of two wins is not defined. */
ALWAYS_INLINE float max8_avx2(__m256 v)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* All ones in the first n (0..8) lanes. */
ALWAYS_INLINE __m256i first_lanes_avx2(uint32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)n),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

#endif
