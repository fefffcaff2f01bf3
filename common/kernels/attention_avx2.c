/* Attention of one query over one block of 64 keys: scores run across tokens, outputs across the value's width.
 * See attention_ref.c. */
#if defined(__x86_64__)
#include "common/base/check.h"
#include "common/kernels/avx2_inline.h"
#include "common/kernels/variants.h"

#define TOKENS 64u
#define WIDE   8 /* registers of outputs at a time */

ALWAYS_INLINE __m256 load_element(const void *base, const bool bf16, size_t i)
{
    return bf16 ? load_bf16_avx2((const uint16_t *)base + i)
                : _mm256_loadu_ps((const float *)base + i);
}

/* Scores of the N * 16 tokens from panel `panel` on. */
ALWAYS_INLINE void score_panels(const float *q, const void *keys, const bool bf16, uint32_t key_dim,
                                uint32_t panel, const int N, float scale, float *s)
{
    __m256 acc[4][2];
    UNROLL
    for (int i = 0; i < 2 * N; i++)
        acc[i / 2][i % 2] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < key_dim; k++) {
        const __m256 value = _mm256_broadcast_ss(q + k);
        UNROLL
        for (int i = 0; i < 2 * N; i++) {
            size_t at =
                ((size_t)(panel + (uint32_t)i / 2) * key_dim + k) * PANEL + 8 * (size_t)(i % 2);
            acc[i / 2][i % 2] =
                _mm256_fmadd_ps(value, load_element(keys, bf16, at), acc[i / 2][i % 2]);
        }
    }
    const __m256 factor = _mm256_set1_ps(scale);
    UNROLL
    for (int i = 0; i < 2 * N; i++)
        _mm256_storeu_ps(s + panel * PANEL + 8 * (size_t)i,
                         _mm256_mul_ps(acc[i / 2][i % 2], factor));
}

ALWAYS_INLINE void scores(const float *q, const void *keys, const bool bf16, uint32_t key_dim,
                          uint32_t first, uint32_t end, float scale, float *s)
{
    uint32_t panel = first / PANEL, panel_end = (end + PANEL - 1) / PANEL;
    if (panel == 0 && panel_end == 4) {
        score_panels(q, keys, bf16, key_dim, 0, 4, scale, s);
        return;
    }
    for (; panel_end - panel >= 2; panel += 2)
        score_panels(q, keys, bf16, key_dim, panel, 2, scale, s);
    if (panel < panel_end) score_panels(q, keys, bf16, key_dim, panel, 1, scale, s);
}

ALWAYS_INLINE void outputs(const float *p, const void *values, const bool bf16, uint32_t value_dim,
                           uint32_t first, uint32_t end, float *o)
{
    uint32_t i = 0;
    for (; i + 8 * WIDE <= value_dim; i += 8 * WIDE) {
        __m256 acc[WIDE];
        UNROLL
        for (int j = 0; j < WIDE; j++)
            acc[j] = _mm256_setzero_ps();
        for (uint32_t t = first; t < end; t++) {
            const __m256 weight = _mm256_broadcast_ss(p + t);
            UNROLL
            for (int j = 0; j < WIDE; j++)
                acc[j] = _mm256_fmadd_ps(
                    weight, load_element(values, bf16, (size_t)t * value_dim + i + 8 * (size_t)j),
                    acc[j]);
        }
        UNROLL
        for (int j = 0; j < WIDE; j++)
            _mm256_storeu_ps(o + i + 8 * j, acc[j]);
    }
    for (; i + 8 <= value_dim; i += 8) {
        __m256 acc = _mm256_setzero_ps();
        for (uint32_t t = first; t < end; t++)
            acc = _mm256_fmadd_ps(_mm256_broadcast_ss(p + t),
                                  load_element(values, bf16, (size_t)t * value_dim + i), acc);
        _mm256_storeu_ps(o + i, acc);
    }
    for (; i < value_dim; i++) {
        float acc = 0.0f;
        for (uint32_t t = first; t < end; t++) {
            size_t at = (size_t)t * value_dim + i;
            acc = fmaf(p[t],
                       bf16 ? bf16_to_f32(((const uint16_t *)values)[at])
                            : ((const float *)values)[at],
                       acc);
        }
        o[i] = acc;
    }
}

ALWAYS_INLINE void block(const float *q, const void *keys, const void *values, const bool bf16,
                         uint32_t key_dim, uint32_t value_dim, uint32_t first, uint32_t end,
                         float scale, float *m, float *l, float *o)
{
    /* Tokens that are not seen keep -infinity; their p is computed and never read. */
    float p[TOKENS];
    scores(q, keys, bf16, key_dim, first, end, scale, p);
    for (uint32_t t = 0; t < first; t++)
        p[t] = -INFINITY;
    for (uint32_t t = end; t < TOKENS; t++)
        p[t] = -INFINITY;

    __m256 best = _mm256_set1_ps(-INFINITY);
    for (uint32_t t = 0; t < TOKENS; t += 8)
        best = _mm256_max_ps(_mm256_loadu_ps(p + t), best);
    const float top =
        max8_avx2(best) + 0.0f; /* -0 becomes +0: which zero came first must not show */
    for (uint32_t t = 0; t < TOKENS; t += 8)
        _mm256_storeu_ps(p + t,
                         exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(p + t), _mm256_set1_ps(top))));

    float sum = 0.0f;
    for (uint32_t t = first; t < end; t++)
        sum += p[t];
    outputs(p, values, bf16, value_dim, first, end, o);
    *m = top;
    *l = sum;
}

void attention_block_avx2(const float *q, const void *keys, const void *values, bool kv_bf16,
                          uint32_t key_dim, uint32_t value_dim, uint32_t first, uint32_t visible,
                          float scale, float *m, float *l, float *o)
{
    assert(visible >= 1 && first < TOKENS && visible <= TOKENS - first);
    if (kv_bf16)
        block(q, keys, values, true, key_dim, value_dim, first, first + visible, scale, m, l, o);
    else
        block(q, keys, values, false, key_dim, value_dim, first, first + visible, scale, m, l, o);
}

void attention_merge_avx2(float *m, float *l, float *o, float m_b, float l_b, const float *o_b,
                          uint32_t value_dim)
{
    const float top = *m > m_b ? *m : m_b;
    const float a = exp_inline(*m - top);
    const float b = exp_inline(m_b - top);
    *l = fmaf(*l, a, l_b * b);
    const __m256 a8 = _mm256_set1_ps(a), b8 = _mm256_set1_ps(b);
    uint32_t i = 0;
    for (; i + 8 <= value_dim; i += 8) {
        __m256 added = _mm256_mul_ps(_mm256_loadu_ps(o_b + i), b8);
        _mm256_storeu_ps(o + i, _mm256_fmadd_ps(_mm256_loadu_ps(o + i), a8, added));
    }
    for (; i < value_dim; i++)
        o[i] = fmaf(o[i], a, o_b[i] * b);
    *m = top;
}
#else
typedef int not_for_this_machine;
#endif
