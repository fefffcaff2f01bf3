/* exp_inline.h - inside common/kernels only: the one exp, for one number. The vector kernels follow it step by step. */
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

static inline float exp_inline(float x)
{
    x = x < EXP_MAX ? x
                    : EXP_MAX; /* this order and sense: NaN becomes 89, as with minps and maxps */
    x = x > EXP_MIN ? x : EXP_MIN;
    float t = fmaf(x, EXP_LOG2E, EXP_MAGIC);
    float n = t - EXP_MAGIC;
    float r = fmaf(n, -EXP_LN2_HI, x);
    r = fmaf(n, -EXP_LN2_LO, r);
    float p = EXP_C6;
    p = fmaf(p, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    /* Two steps of scaling, so that overflow and denormals come out right. */
    int32_t i = (int32_t)(f32_bits(t) - f32_bits(EXP_MAGIC));
    int32_t h = i >> 1;
    int32_t l = i - h;
    return p * f32_from_bits((uint32_t)(h + 127) << 23) * f32_from_bits((uint32_t)(l + 127) << 23);
}

#endif
