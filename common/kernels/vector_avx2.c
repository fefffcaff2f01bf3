/* Everything that walks along one row, eight values at a time; the rest below eight runs the reference's
 * expressions one by one. See vector_ref.c. */
#if defined(__x86_64__)
#include "common/base/check.h"
#include "common/kernels/avx2_inline.h"
#include "common/kernels/variants.h"

#define LANES 16u

/* The last `rest` (below 16) numbers of a row, absent lanes +0. */
ALWAYS_INLINE void load_rest(const float *x, uint32_t rest, __m256 *a, __m256 *b)
{
    *a = _mm256_maskload_ps(x, first_lanes_avx2(rest < 8 ? rest : 8));
    *b = rest > 8 ? _mm256_maskload_ps(x + 8, first_lanes_avx2(rest - 8)) : _mm256_setzero_ps();
}

void rmsnorm_avx2(const float *x, const float *w, uint32_t n, float eps, float *out)
{
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
    }
    if (i < n) { /* fma(0, 0, sum of squares) changes nothing */
        __m256 a, b;
        load_rest(x + i, n - i, &a, &b);
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

void layernorm_avx2(const float *x, const float *w, const float *b, uint32_t n, float eps,
                    float *out)
{
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps(), x0, x1;
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        low = _mm256_add_ps(low, _mm256_loadu_ps(x + i));
        high = _mm256_add_ps(high, _mm256_loadu_ps(x + i + 8));
    }
    const uint32_t whole = i, rest = n - i;
    if (rest > 0) { /* a lane is never -0, so that adding +0 changes nothing */
        load_rest(x + whole, rest, &x0, &x1);
        low = _mm256_add_ps(low, x0);
        high = _mm256_add_ps(high, x1);
    }
    const float mean = fold16_avx2(low, high) / (float)n;
    const __m256 mean8 = _mm256_set1_ps(mean);

    low = high = _mm256_setzero_ps();
    for (i = 0; i < whole; i += LANES) {
        x0 = _mm256_sub_ps(_mm256_loadu_ps(x + i), mean8);
        x1 = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8), mean8);
        low = _mm256_fmadd_ps(x0, x0, low);
        high = _mm256_fmadd_ps(x1, x1, high);
    }
    if (rest > 0) {
        load_rest(x + whole, rest, &x0, &x1);
        const __m256 in0 = _mm256_castsi256_ps(first_lanes_avx2(rest < 8 ? rest : 8)),
                     in1 = _mm256_castsi256_ps(first_lanes_avx2(rest < 8 ? 0 : rest - 8));
        x0 = _mm256_and_ps(_mm256_sub_ps(x0, mean8), in0);
        x1 = _mm256_and_ps(_mm256_sub_ps(x1, mean8), in1);
        low = _mm256_fmadd_ps(x0, x0, low);
        high = _mm256_fmadd_ps(x1, x1, high);
    }
    const float r = 1.0f / sqrtf(fold16_avx2(low, high) / (float)n + eps);
    const __m256 r8 = _mm256_set1_ps(r);
    for (i = 0; i + 8 <= n; i += 8) {
        __m256 y = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), mean8), r8);
        y = _mm256_mul_ps(y, _mm256_loadu_ps(w + i));
        if (b != NULL) y = _mm256_add_ps(y, _mm256_loadu_ps(b + i));
        _mm256_storeu_ps(out + i, y);
    }
    for (; i < n; i++) {
        float y = (x[i] - mean) * r * w[i];
        out[i] = b != NULL ? y + b[i] : y;
    }
}

/* g / (1 + exp(-z)) * u */
ALWAYS_INLINE __m256 gated(__m256 g, __m256 z, __m256 u)
{
    const __m256 below =
        _mm256_add_ps(_mm256_set1_ps(1.0f), exp_avx2(_mm256_xor_ps(z, _mm256_set1_ps(-0.0f))));
    return _mm256_mul_ps(_mm256_div_ps(g, below), u);
}

void swiglu_avx2(const float *g, const float *u, size_t n, float *out)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 gate = _mm256_loadu_ps(g + i);
        _mm256_storeu_ps(out + i, gated(gate, gate, _mm256_loadu_ps(u + i)));
    }
    for (; i < n; i++)
        out[i] = swiglu_inline(g[i], u[i]);
}

void swiglu_clamped_avx2(const float *g, const float *u, size_t n, float limit, float *out)
{
    const __m256 most = _mm256_set1_ps(limit), least = _mm256_set1_ps(-limit),
                 alpha = _mm256_set1_ps(SWIGLU_ALPHA), one = _mm256_set1_ps(1.0f);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 gate = _mm256_min_ps(most, _mm256_loadu_ps(g + i));
        const __m256 up = _mm256_max_ps(least, _mm256_min_ps(most, _mm256_loadu_ps(u + i)));
        _mm256_storeu_ps(out + i, gated(gate, _mm256_mul_ps(alpha, gate), _mm256_add_ps(up, one)));
    }
    for (; i < n; i++)
        out[i] = swiglu_clamped_inline(g[i], u[i], limit);
}

void geglu_tanh_avx2(const float *g, const float *u, size_t n, float *out)
{
    const __m256 c1 = _mm256_set1_ps(GELU_C1), c3 = _mm256_set1_ps(GELU_C3);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 gate = _mm256_loadu_ps(g + i);
        const __m256 z = _mm256_mul_ps(gate, _mm256_fmadd_ps(_mm256_mul_ps(gate, gate), c3, c1));
        _mm256_storeu_ps(out + i, gated(gate, z, _mm256_loadu_ps(u + i)));
    }
    for (; i < n; i++)
        out[i] = geglu_tanh_inline(g[i], u[i]);
}

void relu_avx2(const float *g, size_t n, float *out)
{
    const __m256 zero = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_add_ps(_mm256_max_ps(zero, _mm256_loadu_ps(g + i)), zero));
    for (; i < n; i++)
        out[i] = relu_inline(g[i]);
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

void scale_avx2(float *x, size_t n, float factor)
{
    const __m256 f = _mm256_set1_ps(factor);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), f));
    for (; i < n; i++)
        x[i] *= factor;
}

void soft_cap_avx2(float *x, size_t n, float cap)
{
    const __m256 c = _mm256_set1_ps(cap);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i,
                         _mm256_mul_ps(c, tanh_avx2(_mm256_div_ps(_mm256_loadu_ps(x + i), c))));
    for (; i < n; i++)
        x[i] = cap * tanh_inline(x[i] / cap);
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

/* Four angles' values at both places of their pairs: 0 0 1 1 2 2 3 3. */
ALWAYS_INLINE __m256 twice_each(const float *p)
{
    const __m256 four = _mm256_castps128_ps256(_mm_loadu_ps(p));
    return _mm256_permutevar8x32_ps(four, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}

void rope_pairs_avx2(float *x, uint32_t half, const float *c, const float *s)
{
    /* Even lanes fma(x0, c, -(x1 * s)), odd ones fma(x1, c, x0 * s): the neighbor times s, its sign changed in even lanes. */
    const __m256 even = _mm256_setr_ps(-0.0f, 0, -0.0f, 0, -0.0f, 0, -0.0f, 0);
    uint32_t i = 0;
    for (; i + 4 <= half; i += 4) {
        const __m256 pair = _mm256_loadu_ps(x + 2 * (size_t)i);
        const __m256 neighbor = _mm256_permute_ps(pair, 0xb1);
        const __m256 other = _mm256_xor_ps(_mm256_mul_ps(neighbor, twice_each(s + i)), even);
        _mm256_storeu_ps(x + 2 * (size_t)i, _mm256_fmadd_ps(pair, twice_each(c + i), other));
    }
    for (; i < half; i++) {
        float x0 = x[2 * i], x1 = x[2 * i + 1];
        x[2 * i] = fmaf(x0, c[i], -(x1 * s[i]));
        x[2 * i + 1] = fmaf(x1, c[i], x0 * s[i]);
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
