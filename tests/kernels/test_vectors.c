/* Kernels that walk along rows: every variant gives the reference's bits. */
// links: kernels
#include "kernel_test.h"

#define MAX_N 200u

/* Shapes round the vector widths. */
static const uint32_t sizes[] = {1,  2,  7,  8,  9,  15, 16, 17, 23,  24,
                                 25, 31, 32, 33, 40, 63, 64, 65, 129, 200};
#define EACH_SIZE(n)                                                                               \
    for (uint32_t n##_i = 0, n = 1;                                                                \
         n##_i < sizeof sizes / sizeof sizes[0] && (n = sizes[n##_i], true); n##_i++)

static float input[4][MAX_N + 1];

static void draw(uint32_t n, enum numbers kind, uint64_t *state)
{
    for (uint32_t i = 0; i < 4; i++)
        fill(input[i], n + 1, kind, state);
}

/* Runs CALL with `k` and an output `out` of COUNT floats, once for the reference and once for each variant, at an
 * odd address, starting from input[3], and compares. */
#define COMPARE(COUNT, CALL)                                                                       \
    do {                                                                                           \
        struct guarded want_g = guarded_open((COUNT)*4, 4);                                        \
        float *out = (float *)(void *)want_g.data;                                                 \
        memcpy(out, input[3], (COUNT)*4);                                                          \
        const struct kernels *k = reference();                                                     \
        CALL;                                                                                      \
        float *want = out;                                                                         \
        EACH_VARIANT(v)                                                                            \
        {                                                                                          \
            struct guarded got_g = guarded_open((COUNT)*4, 4);                                     \
            out = (float *)(void *)got_g.data;                                                     \
            memcpy(out, input[3], (COUNT)*4);                                                      \
            k = v;                                                                                 \
            CALL;                                                                                  \
            expect_same(out, want, COUNT, #CALL);                                                  \
            guarded_close(&got_g);                                                                 \
        }                                                                                          \
        guarded_close(&want_g);                                                                    \
    } while (0)

Test(vectors, every_variant_gives_the_bits_of_the_reference)
{
    uint64_t state = 11;
    for (int kind = 0; kind < NUM_N; kind++)
        EACH_SIZE(n)
        {
            draw(n, (enum numbers)kind, &state);
            const float *x = input[0] + 1, *y = input[1] + 1;
            uint16_t half[MAX_N];
            for (uint32_t i = 0; i < n; i++)
                half[i] = bf16_from_f32(y[i]);
            COMPARE(n, k->rmsnorm(x, y, n, 1e-6f, out));
            COMPARE(n, (memcpy(out, x, n * 4), k->rmsnorm(out, y, n, 1e-6f, out)));
            COMPARE(n, k->layernorm(x, y, NULL, n, 1e-6f, out));
            COMPARE(n, k->layernorm(x, y, input[2], n, 1e-5f, out));
            COMPARE(n, (memcpy(out, x, n * 4), k->layernorm(out, y, input[2], n, 1e-5f, out)));
            COMPARE(n, k->swiglu(x, y, n, out));
            COMPARE(n, (memcpy(out, y, n * 4), k->swiglu(x, out, n, out)));
            COMPARE(n, k->swiglu_clamped(x, y, n, 0.7f, out));
            COMPARE(n, k->geglu_tanh(x, y, n, out));
            COMPARE(n, k->relu(x, n, out));
            COMPARE(n, k->scale(out, n, x[0]));
            COMPARE(n, k->soft_cap(out, n, 0.3f));
            COMPARE(n, k->axpy_f32(x[0], y, n, out));
            COMPARE(n, k->axpy_bf16(x[0], half, n, out));
            COMPARE(n, k->add(x, n, out));
            COMPARE(n, k->scale_div(out, n, x[0]));
            COMPARE(2, k->softmax_parts(x, n, &out[0], &out[1]));
            if (2 * n <= MAX_N) COMPARE(2 * n, k->rope_half(out, n, x, y));
            if (2 * n <= MAX_N) COMPARE(2 * n, k->rope_pairs(out, n, x, y));
        }
}

Test(vectors, sums_over_a_row_are_reduce16)
{
    /* Lane i takes k = i mod 16 ascending; then lanes 8, 4, 2, 1 apart. Spelled out once more, by hand. */
    uint64_t state = 12;
    const uint32_t n = 53;
    draw(n, NUM_WIDE, &state);
    float lane[16] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i & 15] = fmaf(input[0][i], input[0][i], lane[i & 15]);
    for (int i = 0; i < 8; i++)
        lane[i] = lane[i] + lane[i + 8];
    volatile float a = lane[0] + lane[4], b = lane[1] + lane[5], c = lane[2] + lane[6],
                   d = lane[3] + lane[7];
    volatile float e = a + c, f = b + d;
    volatile float mean = (e + f) / 53.0f;
    volatile float root = sqrtf(mean + 1e-5f);
    volatile float r = 1.0f / root;
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        float out[MAX_N];
        v->rmsnorm(input[0], input[1], n, 1e-5f, out);
        for (uint32_t j = 0; j < n; j++) {
            volatile float scaled = input[0][j] * r;
            volatile float want = scaled * input[1][j];
            cr_assert(same_f32(out[j], want), "%s [%u]", v->name, j);
        }
    }
}

Test(vectors, fused_steps_are_fused)
{
    /* 1 + 2^-12 squared has a last bit that only an fma keeps beside -(1 + 2^-11). */
    const float u = 1.0f + 0x1p-12f, v0 = 1.0f + 0x1p-11f;
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        float y[9], acc[9], x[18], c[9], s[9];
        uint16_t half[9];
        for (int j = 0; j < 9; j++) {
            y[j] = u;
            acc[j] = -v0;
            x[j] = u;      /* x0 */
            x[j + 9] = v0; /* x1 */
            c[j] = u;
            s[j] = 1.0f;
            half[j] = 0x3f81;
        }
        v->axpy_f32(u, y, 9, acc);
        for (int j = 0; j < 9; j++)
            cr_expect_eq(acc[j], 0x1p-24f, "%s axpy [%d]", v->name, j);
        v->rope_half(x, 9, c, s); /* u*u - v0 */
        for (int j = 0; j < 9; j++)
            cr_expect_eq(x[j], 0x1p-24f, "%s rope [%d]", v->name, j);
        for (int j = 0; j < 9; j++)
            acc[j] = -(1.0f + 0x1p-6f);
        v->axpy_bf16(bf16_to_f32(0x3f81), half, 9, acc); /* (1 + 2^-7)^2 - (1 + 2^-6) */
        for (int j = 0; j < 9; j++)
            cr_expect_eq(acc[j], 0x1p-14f, "%s axpy bf16 [%d]", v->name, j);
    }
}

Test(vectors, rounding_to_bf16_is_nearest_even_everywhere)
{
    uint64_t state = 13;
    for (int kind = 0; kind < NUM_N; kind++)
        for (uint32_t round = 0; round < 50; round++)
            EACH_SIZE(n)
            {
                draw(n, (enum numbers)kind, &state);
                for (uint32_t i = 0; i < n; i++) /* exact halves, and their neighbors */
                    if (i % 3 == 0)
                        input[0][i] = f32_from_bits((f32_bits(input[0][i]) & 0xffff0000u) |
                                                    (0x7fffu + next_u32(&state) % 3));
                EACH_VARIANT(v)
                {
                    struct guarded g = guarded_open(n * 2, 2);
                    uint16_t *out = (uint16_t *)(void *)g.data;
                    v->round_bf16(input[0], n, out);
                    for (uint32_t i = 0; i < n; i++)
                        cr_assert_eq(out[i], bf16_from_f32(input[0][i]), "%s %a", v->name,
                                     (double)input[0][i]);
                    guarded_close(&g);
                }
            }
}

Test(vectors, rows_are_quantized_the_same_everywhere)
{
    uint64_t state = 14;
    for (int kind = 0; kind < NUM_N; kind++)
        for (uint32_t round = 0; round < 400; round++) {
            const uint32_t k = 32 + 32 * (round % 5);
            draw(k, (enum numbers)kind, &state);
            float *x = input[0] + 1;
            if (round % 3 == 0) /* whole multiples of a half: ties */
                for (uint32_t i = 0; i < k; i++)
                    x[i] =
                        i % 32 ? 0.5f * (float)((int32_t)(next_u32(&state) % 509) - 254) : 127.0f;
            if (round % 50 == 1) x[3] = 0x1p-100f;
            int8_t want_q[MAX_N];
            float want_d[MAX_N / 32];
            reference()->quantize_row(x, k, want_q, want_d);
            for (uint32_t i = 0; i < k; i++)
                cr_assert(want_q[i] >= -127);
            EACH_VARIANT(v)
            {
                struct guarded q = guarded_open(k, 1), d = guarded_open(k / 8, 4);
                v->quantize_row(x, k, (int8_t *)q.data, (float *)(void *)d.data);
                cr_assert_arr_eq(q.data, want_q, k);
                expect_same((float *)(void *)d.data, want_d, k / 32, "d");
                guarded_close(&q);
                guarded_close(&d);
            }
        }
}

Test(vectors, quantization_is_what_the_page_says)
{
    float x[128] = {0};
    int8_t q[128];
    float d[4];
    x[0] = 254.0f, x[1] = 1.0f, x[2] = 3.0f, x[3] = -5.0f; /* id = 0.5: ties go to even */
    x[32] = 0x1p-101f;                                     /* too small: zeros */
    x[64] = 1.0f, x[65] = NAN;                             /* the block is marked */
    x[96] = -0x1p-100f;                                    /* just large enough */
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        v->quantize_row(x, 128, q, d);
        cr_expect_eq(d[0], 2.0f);
        cr_expect_arr_eq(q, ((int8_t[]){127, 0, 2, -2, 0}), 5);
        cr_expect(d[1] == 0.0f && q[32] == 0);
        cr_expect(isnan(d[2]) && q[64] == 0 && q[65] == 0);
        cr_expect(d[3] == 0x1p-100f / 127.0f && q[96] == -127);
    }
}

Test(vectors, a_sum_of_exponentials_is_right)
{
    uint64_t state = 15;
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        draw(MAX_N, NUM_PLAIN, &state);
        double want = 0;
        float top = -1, max, sum;
        for (uint32_t j = 0; j < MAX_N; j++)
            top = fmaxf(top, input[0][j]);
        for (uint32_t j = 0; j < MAX_N; j++)
            want += exp((double)input[0][j] - (double)top);
        v->softmax_parts(input[0], MAX_N, &max, &sum);
        cr_expect_eq(max, top);
        cr_expect_float_eq(sum, want, 1e-5 * want);
    }
}

Test(vectors, swiglu_is_right)
{
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        for (float g = -80; g < 80; g += 0.37f) {
            float gs[9], us[9], out[9];
            for (int j = 0; j < 9; j++)
                gs[j] = g + 0.01f * (float)j, us[j] = 1.7f;
            v->swiglu(gs, us, 9, out);
            for (int j = 0; j < 9; j++) {
                double want = (double)gs[j] / (1 + exp(-(double)gs[j])) * (double)1.7f;
                cr_assert_float_eq(out[j], want, 3.4 * 0x1p-24 * fabs(want), "%s silu(%g)", v->name,
                                   (double)gs[j]);
            }
        }
        float g[8] = {-200, 200, 0, -0.0f, INFINITY, -INFINITY, NAN, -88},
              u[8] = {1, 1, 1, 1, 1, 1, 1, 1}, out[8];
        v->swiglu(g, u, 8, out);
        cr_expect(out[0] == 0 && out[1] == 200 && out[2] == 0 && out[4] == INFINITY &&
                  isnan(out[6]));
    }
}

/* What is computed, in double. */
static double silu(double g)
{
    return g / (1 + exp(-g));
}

static double clamped(double g, double u)
{
    g = fmin(g, 7);
    u = fmax(fmin(u, 7), -7);
    return g / (1 + exp(-1.702 * g)) * (u + 1);
}

static double gelu_tanh(double z)
{
    /* 0.5 z (1 + tanh y) without its cancellation */
    const double y = 0.7978845608028654 * (z + 0.044715 * z * z * z);
    return z < 0 ? z * exp(2 * y) / (1 + exp(2 * y)) : 0.5 * z * (1 + tanh(y));
}

Test(vectors, activations_are_right)
{
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        for (float g = -12; g < 12; g += 0.0137f)
            for (float u = -9; u < 9; u += 5.77f) {
                float gs[9], us[9], out[9];
                for (int j = 0; j < 9; j++)
                    gs[j] = g + 0.01f * (float)j, us[j] = u;
                for (enum activation a = 0; a <= ACTIVATION_RELU; a++) {
                    kernels_activate(v, a, 7.0f, gs, a == ACTIVATION_RELU ? NULL : us, 9, out);
                    for (int j = 0; j < 9; j++) {
                        const double z = (double)gs[j], up = (double)us[j];
                        const double right[] = {silu(z) * up, clamped(z, up), gelu_tanh(z) * up,
                                                z > 0 ? z : 0};
                        /* The exponent's rounding is relative to it; 8 ulp of the largest result otherwise. */
                        const double loose = (8 + 2 * z * z) * 0x1p-24;
                        cr_assert_float_eq(out[j], right[a], loose * fabs(right[a]) + 1e-30,
                                           "%s %d(%g, %g): %g, not %g", v->name, (int)a, z, up,
                                           (double)out[j], right[a]);
                    }
                }
            }
    }
}

Test(vectors, activations_let_no_nan_disappear)
{
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        for (int at = 0; at < 17; at++)
            for (enum activation a = 0; a <= ACTIVATION_RELU; a++) {
                float g[17], u[17], out[17];
                for (int side = 0; side < (a == ACTIVATION_RELU ? 1 : 2); side++) {
                    for (int j = 0; j < 17; j++)
                        g[j] = u[j] = 0.5f;
                    (side ? u : g)[at] = at % 2 ? NAN : -NAN;
                    kernels_activate(v, a, 7.0f, g, u, 17, out);
                    for (int j = 0; j < 17; j++)
                        cr_assert_eq(isnan(out[j]) != 0, j == at, "%s %d", v->name, (int)a);
                }
            }
        float ends[9] = {INFINITY, 3e38f, 1e30f, 200, -200, -1e30f, -3e38f, -0.0f, 0},
              ones[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1}, out[9];
        v->geglu_tanh(ends, ones, 9, out);
        cr_expect(out[0] == INFINITY && out[1] == 3e38f && out[3] == 200);
        for (int j = 4; j < 9; j++)
            cr_expect_eq(out[j], 0.0f, "%s", v->name);
        v->swiglu_clamped(ends, ones, 9, 7.0f, out);
        cr_expect_float_eq(out[0], 14.0f, 1e-4);
        cr_expect(out[0] == out[1] && out[0] == out[3] && out[4] == 0 && out[5] == 0);
        v->relu(ends, 9, out);
        cr_expect(out[0] == INFINITY && out[4] == 0 && f32_bits(out[7]) == 0);
    }
}

Test(vectors, layernorm_is_right_and_spelled_out)
{
    uint64_t state = 16;
    const uint32_t n = 53;
    draw(n, NUM_PLAIN, &state);
    for (uint32_t j = 0; j < n; j++)
        input[0][j] = input[0][j] * 0.1f + 3.0f; /* a mean well beyond the spread */
    float lane[16] = {0}, square[16] = {0};
    for (uint32_t j = 0; j < n; j++)
        lane[j & 15] += input[0][j];
    for (uint32_t half = 8; half > 0; half /= 2)
        for (uint32_t j = 0; j < half; j++)
            lane[j] += lane[j + half];
    const float mean = lane[0] / 53.0f;
    double sum = 0, squares = 0;
    for (uint32_t j = 0; j < n; j++) {
        volatile float d = input[0][j] - mean;
        square[j & 15] = fmaf(d, d, square[j & 15]);
        sum += (double)input[0][j];
    }
    for (uint32_t half = 8; half > 0; half /= 2)
        for (uint32_t j = 0; j < half; j++)
            square[j] += square[j + half];
    volatile float var = square[0] / 53.0f;
    volatile float r = 1.0f / sqrtf(var + 1e-5f);
    for (uint32_t j = 0; j < n; j++)
        squares += pow((double)input[0][j] - sum / n, 2);
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        float out[MAX_N];
        v->layernorm(input[0], input[1], input[2], n, 1e-5f, out);
        for (uint32_t j = 0; j < n; j++) {
            volatile float d = input[0][j] - mean;
            volatile float y = d * r;
            y = y * input[1][j];
            y = y + input[2][j];
            cr_assert(same_f32(out[j], y), "%s [%u]", v->name, j);
            const double right =
                ((double)input[0][j] - sum / n) / sqrt(squares / n + 1e-5) * (double)input[1][j] +
                (double)input[2][j];
            cr_assert_float_eq(out[j], right, 2e-5, "%s [%u]", v->name, j);
        }
    }
}

Test(vectors, pairs_turn_as_halves_do)
{
    uint64_t state = 17;
    for (uint32_t half = 1; half < 70; half++) {
        draw(half, NUM_WIDE, &state);
        const float *c = input[0], *s = input[1];
        for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
            const struct kernels *v = runnable(kernels_variant(i));
            if (v == NULL) continue;
            float halves[140], pairs[140];
            for (uint32_t j = 0; j < half; j++) {
                pairs[2 * j] = halves[j] = input[2][j];
                pairs[2 * j + 1] = halves[j + half] = input[3][j];
            }
            v->rope_half(halves, half, c, s);
            v->rope_pairs(pairs, half, c, s);
            for (uint32_t j = 0; j < half; j++)
                cr_assert(same_f32(pairs[2 * j], halves[j]) &&
                          same_f32(pairs[2 * j + 1], halves[j + half]));
        }
    }
}

Test(vectors, soft_caps_are_right)
{
    for (uint32_t i = 0; kernels_variant(i) != NULL; i++) {
        const struct kernels *v = runnable(kernels_variant(i));
        if (v == NULL) continue;
        for (float x = -200; x < 200; x += 0.33f) {
            float y[9];
            for (int j = 0; j < 9; j++)
                y[j] = x;
            v->soft_cap(y, 9, 30.0f);
            const double right = 30 * tanh((double)x / 30);
            for (int j = 0; j < 9; j++)
                cr_assert_float_eq(y[j], right, 5 * 0x1p-23 * fabs(right));
        }
    }
}
