/* exp_inline.h - inside common/kernels only: the one exp, and tanh made of it, for one number. The vector kernels follow
 * them step by step. */
#ifndef MOESAIC_KERNELS_EXP_INLINE_H
#define MOESAIC_KERNELS_EXP_INLINE_H

#include <math.h>

#include "common/tensor/dtype.h"

#define EXP_MAX   89.0f
#define EXP_MIN   -104.0f
#define EXP_LOG2E 0x1.715476p+0f
#define EXP_MAGIC                                                                                  \
    12582912.0f /* 1.5 * 2^23: adding it rounds to a whole number, kept in the low bits */
#define EXP_LN2_HI 0x1.62e400p-1f
#define EXP_LN2_LO 0x1.7f7d1cp-20f
#define EXP_C6     0x1.6850e4p-10f
#define EXP_C5     0x1.123bccp-7f
#define EXP_C4     0x1.555b98p-5f
#define EXP_C3     0x1.55548ep-3f
#define EXP_C2     0x1.fffff8p-2f

#define GELU_C1      0x1.988454p+0f /* 2 sqrt(2 / pi) */
#define GELU_C3      0x1.2444f2p-4f /* the same times 0.044715 */
#define SWIGLU_ALPHA 0x1.b3b646p+0f /* 1.702: of the clamped SwiGLU */
#define TANH_MAX     20.0f          /* of 2|x|: from there on tanh is 1 in f32 */

/* x = n ln 2 + r: gives r, and n in the low bits of *t. */
static inline float exp_reduce(float x, float *t)
{
    *t = fmaf(x, EXP_LOG2E, EXP_MAGIC);
    float n = *t - EXP_MAGIC;
    float r = fmaf(n, -EXP_LN2_HI, x);
    return fmaf(n, -EXP_LN2_LO, r);
}

/* (exp(r) - 1) / r */
static inline float exp_poly(float r)
{
    float p = EXP_C6;
    p = fmaf(p, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    return fmaf(p, r, 1.0f);
}

static inline float exp_inline(float x)
{
    x = x < EXP_MAX ? x
                    : EXP_MAX; /* this order and sense: NaN becomes 89, as with minps and maxps */
    x = x > EXP_MIN ? x : EXP_MIN;
    float t;
    float r = exp_reduce(x, &t);
    float p = fmaf(exp_poly(r), r, 1.0f);
    /* Two steps of scaling, so that overflow and denormals come out right. */
    int32_t i = (int32_t)(f32_bits(t) - f32_bits(EXP_MAGIC));
    int32_t h = i >> 1;
    int32_t l = i - h;
    return p * f32_from_bits((uint32_t)(h + 127) << 23) * f32_from_bits((uint32_t)(l + 127) << 23);
}

/* e / (e + 2) with e = exp(2|x|) - 1, which keeps its digits when x is small; the sign of x. NaN stays NaN. */
static inline float tanh_inline(float x)
{
    const uint32_t sign = f32_bits(x) & 0x80000000u;
    float y = 2.0f * f32_from_bits(f32_bits(x) ^ sign);
    y = TANH_MAX < y ? TANH_MAX : y; /* this order and sense: NaN stays */
    float t;
    float r = exp_reduce(y, &t);
    float scale = f32_from_bits((f32_bits(t) - f32_bits(EXP_MAGIC) + 127u) << 23);
    float e = fmaf(scale, exp_poly(r) * r, scale - 1.0f);
    return f32_from_bits(f32_bits(e / (e + 2.0f)) | sign);
}

/* The activations of kernels.h, for one number. */
static inline float swiglu_inline(float g, float u)
{
    return g / (1.0f + exp_inline(-g)) * u;
}

static inline float swiglu_clamped_inline(float g, float u, float limit)
{
    g = limit < g ? limit : g; /* this order and sense: NaN stays */
    u = limit < u ? limit : u;
    u = -limit > u ? -limit : u;
    return g / (1.0f + exp_inline(-(SWIGLU_ALPHA * g))) * (u + 1.0f);
}

static inline float geglu_tanh_inline(float g, float u)
{
    float z = g * fmaf(g * g, GELU_C3, GELU_C1);
    return g / (1.0f + exp_inline(-z)) * u;
}

static inline float relu_inline(float g)
{
    return (0.0f > g ? 0.0f : g) + 0.0f;
}

#endif
