/* Everything that walks along one row. */
#include <math.h>

#include "common/base/check.h"
#include "common/kernels/exp_inline.h"
#include "common/kernels/variants.h"

#define LANES 16u

/* The end of Reduce16: lanes i and i + 8, then i + 4, i + 2, i + 1. */
static float fold(float lane[LANES])
{
    for (uint32_t half = LANES / 2; half > 0; half /= 2)
        for (uint32_t i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

void rmsnorm_ref(const float *x, const float *w, uint32_t n, float eps, float *out)
{
    float lane[LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i % LANES] = fmaf(x[i], x[i], lane[i % LANES]);
    float r = 1.0f / sqrtf(fold(lane) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        out[i] = x[i] * r * w[i];
}

void layernorm_ref(const float *x, const float *w, const float *b, uint32_t n, float eps,
                   float *out)
{
    float lane[LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i % LANES] += x[i];
    const float mean = fold(lane) / (float)n;
    float square[LANES] = {0};
    for (uint32_t i = 0; i < n; i++) {
        float d = x[i] - mean;
        square[i % LANES] = fmaf(d, d, square[i % LANES]);
    }
    const float r = 1.0f / sqrtf(fold(square) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++) {
        float y = (x[i] - mean) * r * w[i];
        out[i] = b != NULL ? y + b[i] : y;
    }
}

void swiglu_ref(const float *g, const float *u, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = swiglu_inline(g[i], u[i]);
}

void swiglu_clamped_ref(const float *g, const float *u, size_t n, float limit, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = swiglu_clamped_inline(g[i], u[i], limit);
}

void geglu_tanh_ref(const float *g, const float *u, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = geglu_tanh_inline(g[i], u[i]);
}

void relu_ref(const float *g, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = relu_inline(g[i]);
}

void axpy_f32_ref(float gate, const float *y, size_t n, float *acc)
{
    for (size_t i = 0; i < n; i++)
        acc[i] = fmaf(gate, y[i], acc[i]);
}

void axpy_bf16_ref(float gate, const uint16_t *y, size_t n, float *acc)
{
    for (size_t i = 0; i < n; i++)
        acc[i] = fmaf(gate, bf16_to_f32(y[i]), acc[i]);
}

void add_ref(const float *x, size_t n, float *acc)
{
    for (size_t i = 0; i < n; i++)
        acc[i] += x[i];
}

void scale_ref(float *x, size_t n, float factor)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
}

void soft_cap_ref(float *x, size_t n, float cap)
{
    for (size_t i = 0; i < n; i++)
        x[i] = cap * tanh_inline(x[i] / cap);
}

void rope_half_ref(float *x, uint32_t half, const float *c, const float *s)
{
    for (uint32_t i = 0; i < half; i++) {
        float x0 = x[i], x1 = x[i + half];
        x[i] = fmaf(x0, c[i], -(x1 * s[i]));
        x[i + half] = fmaf(x1, c[i], x0 * s[i]);
    }
}

void rope_pairs_ref(float *x, uint32_t half, const float *c, const float *s)
{
    for (uint32_t i = 0; i < half; i++) {
        float x0 = x[2 * i], x1 = x[2 * i + 1];
        x[2 * i] = fmaf(x0, c[i], -(x1 * s[i]));
        x[2 * i + 1] = fmaf(x1, c[i], x0 * s[i]);
    }
}

void scale_div_ref(float *o, uint32_t n, float l)
{
    for (uint32_t i = 0; i < n; i++)
        o[i] = o[i] / l;
}

void softmax_parts_ref(const float *x, uint32_t n, float *max, float *sum)
{
    float top = -INFINITY;
    for (uint32_t i = 0; i < n; i++)
        top = x[i] > top ? x[i] : top;
    top += 0.0f; /* -0 becomes +0: which zero came first must not show */
    float lane[LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i % LANES] += exp_inline(x[i] - top);
    *max = top;
    *sum = fold(lane);
}
