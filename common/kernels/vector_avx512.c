/* Activations, sixteen values at a time. The other functions along a row wait for memory or for their sums, as wide
 * registers do too. See vector_ref.c. */
#if defined(__x86_64__)
#include "common/base/check.h"
#include "common/kernels/avx512_inline.h"
#include "common/kernels/variants.h"

/* g / (1 + exp(-z)) * u */
ALWAYS_INLINE __m512 gated(__m512 g, __m512 z, __m512 u)
{
    const __m512i sign = _mm512_castps_si512(_mm512_set1_ps(-0.0f));
    const __m512 minus = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(z), sign));
    const __m512 below = _mm512_add_ps(_mm512_set1_ps(1.0f), exp_avx512(minus));
    return _mm512_mul_ps(_mm512_div_ps(g, below), u);
}

void swiglu_avx512(const float *g, const float *u, size_t n, float *out)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512 gate = _mm512_loadu_ps(g + i);
        _mm512_storeu_ps(out + i, gated(gate, gate, _mm512_loadu_ps(u + i)));
    }
    for (; i < n; i++)
        out[i] = swiglu_inline(g[i], u[i]);
}

void swiglu_clamped_avx512(const float *g, const float *u, size_t n, float limit, float *out)
{
    const __m512 most = _mm512_set1_ps(limit), least = _mm512_set1_ps(-limit),
                 alpha = _mm512_set1_ps(SWIGLU_ALPHA), one = _mm512_set1_ps(1.0f);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512 gate = _mm512_min_ps(most, _mm512_loadu_ps(g + i));
        const __m512 up = _mm512_max_ps(least, _mm512_min_ps(most, _mm512_loadu_ps(u + i)));
        _mm512_storeu_ps(out + i, gated(gate, _mm512_mul_ps(alpha, gate), _mm512_add_ps(up, one)));
    }
    for (; i < n; i++)
        out[i] = swiglu_clamped_inline(g[i], u[i], limit);
}

void geglu_tanh_avx512(const float *g, const float *u, size_t n, float *out)
{
    const __m512 c1 = _mm512_set1_ps(GELU_C1), c3 = _mm512_set1_ps(GELU_C3);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512 gate = _mm512_loadu_ps(g + i);
        const __m512 z = _mm512_mul_ps(gate, _mm512_fmadd_ps(_mm512_mul_ps(gate, gate), c3, c1));
        _mm512_storeu_ps(out + i, gated(gate, z, _mm512_loadu_ps(u + i)));
    }
    for (; i < n; i++)
        out[i] = geglu_tanh_inline(g[i], u[i]);
}
#else
typedef int not_for_this_machine;
#endif
