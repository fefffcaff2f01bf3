/* exp, tanh, cos, sin and log against the C library in double. */
// links: kernels
#include <float.h>

#include "kernel_test.h"

/* Distance in units of the last place of the f32 nearest to `want`. */
static double ulps(float got, double want)
{
    float near = (float)want;
    double unit = (double)(nextafterf(fabsf(near), INFINITY) - fabsf(near));
    return fabs((double)got - want) / unit;
}

Test(math, exp_is_within_a_unit_of_the_last_place)
{
    double worst = 0;
    for (uint32_t u = f32_bits(1e-8f); u < f32_bits(88.7f); u += 97) {
        float x = f32_from_bits(u);
        double up = ulps(kernels_exp(x), exp((double)x)),
               down = x < 87.3f ? ulps(kernels_exp(-x), exp(-(double)x)) : 0;
        worst = fmax(worst, fmax(up, down));
    }
    cr_expect_lt(worst, 0.88, "worst error %g ulp", worst);
    cr_expect_gt(worst, 0.5, "a dense range was expected");
}

Test(math, exp_ends_well)
{
    cr_expect_eq(kernels_exp(0.0f), 1.0f);
    cr_expect_eq(kernels_exp(-0.0f), 1.0f);
    cr_expect_eq(kernels_exp(1000.0f), INFINITY);
    cr_expect_eq(kernels_exp(INFINITY), INFINITY);
    cr_expect_eq(kernels_exp(-1000.0f), 0.0f);
    cr_expect_eq(kernels_exp(-INFINITY), 0.0f);
    cr_expect_eq(kernels_exp(NAN), INFINITY);
    cr_expect_eq(kernels_exp(-103.0f), 0x1p-149f); /* denormals come out right */
    cr_expect_float_eq(kernels_exp(-90.0f), exp(-90.0), 0x1p-149);
}

Test(math, exp_has_these_bits)
{
    /* By the page's expression, evaluated in exact arithmetic apart from this code; one changed coefficient or
     * unfused step shows. */
    static const uint32_t known[][2] = {
#include "exp_bits.inc"
    };
    for (uint32_t i = 0; i < sizeof known / sizeof known[0]; i++)
        cr_expect_eq(f32_bits(kernels_exp(f32_from_bits(known[i][0]))), known[i][1], "exp(%a)",
                     (double)f32_from_bits(known[i][0]));
}

/* The exp inside a vector kernel shows in attention: with a largest score of 0, keys x, and one-hot values, output
 * t is exp(x_t). */
static void expect_vector_exp(const struct kernels *v, const float x[63])
{
    static float values[64 * 64];
    float keys[64], o[64];
    const float q = 1.0f;
    const struct attention_shape shape = {.key_dim = 1, .value_dim = 64, .scale = 1.0f};
    struct attention_row row = {.q = &q, .o = o, .visible = 64};
    for (int t = 0; t < 64; t++) {
        keys[t] = t < 63 ? x[t] : 0.0f;
        values[65 * t] = 1.0f;
    }
    v->attention_block(&shape, &row, 1, keys, values);
    cr_assert_eq(row.m, 0.0f);
    for (int t = 0; t < 64; t++)
        cr_assert_eq(f32_bits(o[t]), f32_bits(kernels_exp(keys[t])),
                     "%s exp(%a): %a, one by one %a", v->name, (double)keys[t], (double)o[t],
                     (double)kernels_exp(keys[t]));
}

Test(math, exp_has_the_same_bits_inside_vector_kernels)
{
    static const uint32_t unfused[][2] = {
#include "exp_bits.inc"
    };
    EACH_VARIANT(v)
    {
        float x[63] = {0};
        uint32_t n = 0;
        for (uint32_t i = 0; i < sizeof unfused / sizeof unfused[0]; i++) {
            x[n] = f32_from_bits(unfused[i][0] | 0x80000000u);
            n = (n + 1) % 63;
            expect_vector_exp(v, x);
        }
        for (uint32_t u = f32_bits(1e-6f); u < f32_bits(110.0f); u += 151) {
            x[n] = -f32_from_bits(u);
            n = (n + 1) % 63;
            if (n == 0) expect_vector_exp(v, x);
        }
    }
}

Test(math, tanh_is_within_a_few_units_of_the_last_place)
{
    double worst = 0;
    for (uint32_t u = 1; u < f32_bits(30.0f); u += 331) {
        float x = f32_from_bits(u), y = kernels_tanh(x);
        worst = fmax(worst, ulps(y, tanh((double)x)));
        cr_assert(f32_bits(kernels_tanh(-x)) == (f32_bits(y) ^ 0x80000000u));
        cr_assert(y <= 1.0f);
    }
    cr_expect_lt(worst, 3.4, "worst error %g ulp", worst);
    cr_expect_gt(worst, 1.0, "a dense range was expected");
    cr_expect(kernels_tanh(INFINITY) == 1.0f && kernels_tanh(-INFINITY) == -1.0f);
    cr_expect(kernels_tanh(10.0f) == 1.0f && kernels_tanh(3e38f) == 1.0f);
    cr_expect(f32_bits(kernels_tanh(-0.0f)) == 0x80000000u && kernels_tanh(1e-45f) == 1e-45f);
    cr_expect(isnan(kernels_tanh(NAN)) && isnan(kernels_tanh(-NAN)));
}

Test(math, tanh_has_the_same_bits_inside_vector_kernels)
{
    EACH_VARIANT(v)
    {
        float x[19] = {NAN, INFINITY, -INFINITY, -0.0f, 0.0f, 1e-45f}, y[19];
        for (uint32_t u = 0; u < 0x7f800000u; u += 997 * 19) {
            for (uint32_t i = u > 0 ? 0 : 6; i < 19; i++)
                x[i] = f32_from_bits((u + 997 * i) | i << 31);
            memcpy(y, x, sizeof y);
            v->soft_cap(y, 19, 1.0f);
            for (uint32_t i = 0; i < 19; i++)
                cr_assert(same_f32(y[i], kernels_tanh(x[i])), "%s tanh(%a)", v->name, (double)x[i]);
        }
    }
}

Test(math, sigmoid_is_right)
{
    for (float x = -80; x < 80; x += 0.13f) {
        double right = 1 / (1 + exp(-(double)x));
        cr_assert_float_eq(kernels_sigmoid(x), right, 3 * 0x1p-24 * right, "sigmoid(%g)",
                           (double)x);
    }
    cr_expect(kernels_sigmoid(INFINITY) == 1.0f && kernels_sigmoid(-INFINITY) == 0.0f);
    cr_expect(isnan(kernels_sigmoid(NAN)));
}

static void check_angle(float angle, double *worst)
{
    float c, s;
    kernels_cos_sin(angle, &c, &s);
    *worst = fmax(*worst, fmax(ulps(c, cos((double)angle)), ulps(s, sin((double)angle))));
}

Test(math, cos_and_sin_are_right_for_any_angle)
{
    double worst = 0;
    for (uint32_t u = f32_bits(0x1p-20f); u < f32_bits(0x1p26f); u += 331)
        check_angle(f32_from_bits(u), &worst);
    for (uint32_t i = 0; i < 300000; i++)
        check_angle((float)i, &worst);
    for (uint32_t u = f32_bits(0x1p26f); u < 0x7f800000u; u += 3331)
        check_angle(f32_from_bits(u), &worst);
    check_angle(0x1.6ac5b2p+62f, &worst); /* close to a multiple of pi/2 */
    check_angle(f32_from_bits(0x7f7fffffu), &worst);
    cr_expect_lt(worst, 0.50001, "worst error %g ulp", worst);
}

Test(math, cos_and_sin_know_signs_and_refuse_the_rest)
{
    float c, s, c2, s2;
    for (float a = 0.1f; a < 1e12f; a *= 1.7f) {
        kernels_cos_sin(a, &c, &s);
        kernels_cos_sin(-a, &c2, &s2);
        cr_expect(c == c2 && s == -s2);
    }
    kernels_cos_sin(-0.0f, &c, &s);
    cr_expect(c == 1.0f && f32_bits(s) == 0x80000000u);
    kernels_cos_sin(INFINITY, &c, &s);
    cr_expect(isnan(c) && isnan(s));
    kernels_cos_sin(NAN, &c, &s);
    cr_expect(isnan(c) && isnan(s));
}

Test(math, log_is_within_a_unit_of_the_last_place_of_double)
{
    uint64_t state = 5;
    double worst = 0;
    for (uint32_t i = 0; i < 400000; i++) {
        double x = 1.0 + (double)next_unit(&state) * (i % 3 ? 0.5 : 0.01);
        if (i % 2) x = ldexp(x, (int)(next_u32(&state) % 1200) - 600);
        long double want = logl((long double)x);
        double near = (double)want, unit = nextafter(fabs(near), INFINITY) - fabs(near);
        worst =
            fmax(worst, (double)(fabsl((long double)kernels_log(x) - want) / (long double)unit));
    }
    cr_expect_lt(worst, 1.0, "worst error %g ulp", worst);
    cr_expect_eq(kernels_log(1.0), 0.0);
    cr_expect_float_eq(kernels_log(DBL_MIN), log(DBL_MIN), 1e-13);
}
