/* exp, tanh, cos, sin and log without libm, whose variants differ between machines. Only fma, which is exact to the
 * last bit everywhere, is called. */
#include <math.h>

#include "common/kernels/exp_inline.h"
#include "common/kernels/kernels.h"

float kernels_exp(float x)
{
    return exp_inline(x);
}

float kernels_tanh(float x)
{
    return tanh_inline(x);
}

float kernels_sigmoid(float x)
{
    if (x != x) return x; /* exp takes NaN for a large number */
    return 1.0f / (1.0f + exp_inline(-x));
}

/* ---- cos and sin ---- */

/* pi/2 in three doubles, each the rest of the one before, rounded. */
#define HALF_PI_1   0x1.921fb54442d18p+0
#define HALF_PI_2   0x1.1a62633145c07p-54
#define HALF_PI_3   -0x1.f1976b7ed8fbcp-110
#define TWO_OVER_PI 0x1.45f306dc9c883p-1
#define ROUNDER     0x1.8p+52 /* adding and taking it away rounds to a whole number */
#define SMALL_ANGLE 0x1p+28f

/* The first 256 bits of 2/pi behind the binary point. */
static const uint64_t two_over_pi[4] = {0xa2f9836e4e441529u, 0xfc2757d1f534ddc0u,
                                        0xdb6295993c439041u, 0xfe5163abdebbc561u};

/* angle = quadrant * pi/2 + rest, for |angle| < 2^28. The first fma is exact: the rest is a multiple of
 * 2^-52 below 1. The next two add what pi/2 has beyond 53 and 106 bits. */
static double reduce_small(double angle, uint32_t *quadrant)
{
    double n = (angle * TWO_OVER_PI + ROUNDER) - ROUNDER;
    double rest = fma(n, -HALF_PI_1, angle);
    rest = fma(n, -HALF_PI_2, rest);
    rest = fma(n, -HALF_PI_3, rest);
    *quadrant = (uint32_t)(int32_t)n;
    return rest;
}

/* For 2^28 <= angle (Payne and Hanek). angle = m * 2^e with whole m; of angle * 2/pi only the value modulo 4
 * matters, so the bits of 2/pi that weigh 4 or more once shifted by e are skipped, and 128 bits from there
 * on suffice: what is cut off is below 2^-102. */
static double reduce_large(float angle, uint32_t *quadrant)
{
    uint32_t bits = f32_bits(angle);
    uint64_t m = (bits & 0x7fffffu) | 0x800000u;
    uint32_t skip = (bits >> 23) - 127 - 23 - 2; /* 3 or more, 102 at most */

    uint32_t limb = skip / 64, shift = skip % 64;
    unsigned __int128 window = (unsigned __int128)two_over_pi[limb] << 64 | two_over_pi[limb + 1];
    if (shift > 0) window = window << shift | two_over_pi[limb + 2] >> (64 - shift);

    unsigned __int128 turns = window * m; /* modulo 4, in units of 2^-126 */
    unsigned __int128 nearest = turns + ((unsigned __int128)1 << 125);
    *quadrant = (uint32_t)(nearest >> 126);
    __int128 rest = (__int128)(turns - (nearest >> 126 << 126));
    return (double)rest * 0x1p-126 * HALF_PI_1;
}

/* Taylor series; at pi/4 the first term left out is below 1e-16. */
static double sin_poly(double r)
{
    double z = r * r;
    double p = -1.0 / 1307674368000.0;
    p = fma(p, z, 1.0 / 6227020800.0);
    p = fma(p, z, -1.0 / 39916800.0);
    p = fma(p, z, 1.0 / 362880.0);
    p = fma(p, z, -1.0 / 5040.0);
    p = fma(p, z, 1.0 / 120.0);
    p = fma(p, z, -1.0 / 6.0);
    return fma(p * z, r, r);
}

static double cos_poly(double r)
{
    double z = r * r;
    double p = 1.0 / 20922789888000.0;
    p = fma(p, z, -1.0 / 87178291200.0);
    p = fma(p, z, 1.0 / 479001600.0);
    p = fma(p, z, -1.0 / 3628800.0);
    p = fma(p, z, 1.0 / 40320.0);
    p = fma(p, z, -1.0 / 720.0);
    p = fma(p, z, 1.0 / 24.0);
    p = fma(p, z, -0.5);
    return fma(p, z, 1.0);
}

void kernels_cos_sin(float angle, float *c, float *s)
{
    float magnitude = f32_from_bits(f32_bits(angle) & 0x7fffffffu);
    if (!(magnitude < INFINITY)) {
        *c = *s = f32_from_bits(0x7fc00000u);
        return;
    }
    uint32_t quadrant;
    double rest = magnitude < SMALL_ANGLE ? reduce_small((double)magnitude, &quadrant)
                                          : reduce_large(magnitude, &quadrant);
    double cosine = cos_poly(rest), sine = sin_poly(rest);
    double swap = cosine;
    if (quadrant & 1u) {
        cosine = -sine;
        sine = swap;
    }
    if (quadrant & 2u) {
        cosine = -cosine;
        sine = -sine;
    }
    *c = (float)cosine;
    *s = (float)(f32_bits(angle) >> 31 ? -sine : sine);
}

/* ---- log ---- */

/* ln 2 in two parts; the first has 33 bits behind the point, so that its product with an exponent is exact. */
#define LN2_HI 0x1.62e42fefp-1
#define LN2_LO 0x1.473de6af278edp-34

double kernels_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t exponent = (int32_t)(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 0x1.6a09e667f3bcdp+0) { /* into sqrt(1/2)..sqrt(2), so that log(m) is small */
        m *= 0.5;
        exponent++;
    }
    /* log(1 + f) = 2 atanh(s), s = f / (2 + f). Since 2s = f - f^2/2 + s * f^2/2 the leading terms are taken
     * from f itself, exactly, and only the small rest carries rounding errors. */
    double f = m - 1.0; /* exact */
    double s = f / (2.0 + f);
    double z = s * s;
    double r = 2.0 / 23.0;
    for (int i = 21; i >= 3; i -= 2)
        r = fma(r, z, 2.0 / i);
    r *= z;
    double half_square = 0.5 * f * f;
    double e = (double)exponent;
    return e * LN2_HI - ((half_square - (s * (half_square + r) + e * LN2_LO)) - f);
}
