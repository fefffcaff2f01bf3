/* double_exp.h - exp in double without the C library, whose variants differ by CPU: one fixed order of operations.
 * Within 2 ulp for -708 < x < 709; 0 below, +Inf above, NaN gives 0. */
#ifndef MOESAIC_MODEL_DOUBLE_EXP_H
#define MOESAIC_MODEL_DOUBLE_EXP_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline double double_exp(double x)
{
    if (!(x > -708.0)) return 0.0;
    if (x > 709.0) return (double)INFINITY;
    const double magic = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to a whole number */
    double t = x * 1.4426950408889634 + magic;
    double n = t - magic;
    double r = x - n * 0x1.62e42fefa0000p-1; /* ln 2 in two parts; n * high is exact */
    r = r - n * 0x1.cf79abc9e3b3ap-40;
    /* Taylor: |r| <= 0.3466, the first term left out is below 2^-60. */
    static const double c[] = {1.0 / 6227020800.0,
                               1.0 / 479001600.0,
                               1.0 / 39916800.0,
                               1.0 / 3628800.0,
                               1.0 / 362880.0,
                               1.0 / 40320.0,
                               1.0 / 5040.0,
                               1.0 / 720.0,
                               1.0 / 120.0,
                               1.0 / 24.0,
                               1.0 / 6.0,
                               0.5,
                               1.0,
                               1.0};
    double p = c[0];
    for (unsigned i = 1; i < sizeof c / sizeof c[0]; i++)
        p = p * r + c[i];
    uint64_t bits = (uint64_t)((int64_t)n + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

#endif
