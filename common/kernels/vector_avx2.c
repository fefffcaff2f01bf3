/* Everything that walks along one row, eight values at a time; the rest below eight runs the reference's
 * expressions one by one. See vector_ref.c. */
#if defined(__x86_64__)
#include "common/base/check.h"
#include "common/kernels/avx2_inline.h"
#include "common/kernels/variants.h"

#define LANES 16u

void rmsnorm_avx2(const float *x, const float *w, uint32_t n, float eps, float *out)
{
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
    }
    if (i < n) { /* absent lanes are read as +0: fma(0, 0, sum of squares) changes nothing */
        uint32_t rest = n - i;
        __m256i mask_low = first_lanes_avx2(rest < 8 ? rest : 8),
                mask_high = first_lanes_avx2(rest < 8 ? 0 : rest - 8);
        __m256 a = _mm256_maskload_ps(x + i, mask_low);
        __m256 b = rest > 8 ? _mm256_maskload_ps(x + i + 8, mask_high) : _mm256_setzero_ps();
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
    }
    float r = 1.0f / sqrtf(fold16_avx2(low, high) / (float)n + eps);
    const __m256 r8 = _mm256_set1_ps(r);
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), r8),
                                                _mm256_loadu_ps(w + i)));
    for (; i < n; i++)
        out[i] = x[i] * r * w[i];
}

void swiglu_avx2(const float *g, const float *u, size_t n, float *out)
{
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 gate = _mm256_loadu_ps(g + i);
        __m256 below = _mm256_add_ps(one, exp_avx2(_mm256_xor_ps(gate, sign)));
        _mm256_storeu_ps(out + i,
                         _mm256_mul_ps(_mm256_div_ps(gate, below), _mm256_loadu_ps(u + i)));
    }
    for (; i < n; i++)
        out[i] = g[i] / (1.0f + exp_inline(-g[i])) * u[i];
}

void axpy_f32_avx2(float gate, const float *y, size_t n, float *acc)
{
    const __m256 a = _mm256_set1_ps(gate);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(acc + i,
                         _mm256_fmadd_ps(a, _mm256_loadu_ps(y + i), _mm256_loadu_ps(acc + i)));
    for (; i < n; i++)
        acc[i] = fmaf(gate, y[i], acc[i]);
}

void axpy_bf16_avx2(float gate, const uint16_t *y, size_t n, float *acc)
{
    const __m256 a = _mm256_set1_ps(gate);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(acc + i,
                         _mm256_fmadd_ps(a, load_bf16_avx2(y + i), _mm256_loadu_ps(acc + i)));
    for (; i < n; i++)
        acc[i] = fmaf(gate, bf16_to_f32(y[i]), acc[i]);
}

void add_avx2(const float *x, size_t n, float *acc)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(acc + i, _mm256_add_ps(_mm256_loadu_ps(acc + i), _mm256_loadu_ps(x + i)));
    for (; i < n; i++)
        acc[i] += x[i];
}

void rope_half_avx2(float *x, uint32_t half, const float *c, const float *s)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    uint32_t i = 0;
    for (; i + 8 <= half; i += 8) {
        __m256 x0 = _mm256_loadu_ps(x + i), x1 = _mm256_loadu_ps(x + i + half);
        __m256 cosine = _mm256_loadu_ps(c + i), sine = _mm256_loadu_ps(s + i);
        __m256 minus = _mm256_xor_ps(_mm256_mul_ps(x1, sine), sign);
        _mm256_storeu_ps(x + i, _mm256_fmadd_ps(x0, cosine, minus));
        _mm256_storeu_ps(x + i + half, _mm256_fmadd_ps(x1, cosine, _mm256_mul_ps(x0, sine)));
    }
    for (; i < half; i++) {
        float x0 = x[i], x1 = x[i + half];
        x[i] = fmaf(x0, c[i], -(x1 * s[i]));
        x[i + half] = fmaf(x1, c[i], x0 * s[i]);
    }
}

void scale_div_avx2(float *o, uint32_t n, float l)
{
    const __m256 divisor = _mm256_set1_ps(l);
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(o + i, _mm256_div_ps(_mm256_loadu_ps(o + i), divisor));
    for (; i < n; i++)
        o[i] = o[i] / l;
}

void softmax_parts_avx2(const float *x, uint32_t n, float *max, float *sum)
{
    __m256 best = _mm256_set1_ps(-INFINITY);
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        best = _mm256_max_ps(_mm256_loadu_ps(x + i), best);
    float top = max8_avx2(best);
    for (; i < n; i++)
        top = x[i] > top ? x[i] : top;
    top += 0.0f;

    const __m256 top8 = _mm256_set1_ps(top);
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    for (i = 0; i + LANES <= n; i += LANES) {
        low = _mm256_add_ps(low, exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(x + i), top8)));
        high = _mm256_add_ps(high, exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8), top8)));
    }
    float lane[LANES];
    _mm256_storeu_ps(lane, low);
    _mm256_storeu_ps(lane + 8, high);
    for (uint32_t j = 0; i + j < n; j++)
        lane[j] += exp_inline(x[i + j] - top);
    *max = top;
    *sum = fold16_avx2(_mm256_loadu_ps(lane), _mm256_loadu_ps(lane + 8));
}
#else
typedef int not_for_this_machine;
#endif
