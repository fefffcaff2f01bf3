/* Attention of one query over one block of 64 keys, and the merge of blocks. */
#include <math.h>

#include "common/base/check.h"
#include "common/kernels/exp_inline.h"
#include "common/kernels/variants.h"

#define TOKENS 64u

static float element(const void *base, bool bf16, size_t i)
{
    return bf16 ? bf16_to_f32(((const uint16_t *)base)[i]) : ((const float *)base)[i];
}

void attention_block_ref(const float *q, const void *keys, const void *values, bool kv_bf16,
                         uint32_t key_dim, uint32_t value_dim, uint32_t first, uint32_t visible,
                         float scale, float *m, float *l, float *o)
{
    assert(visible >= 1 && first < TOKENS && visible <= TOKENS - first);
    float p[TOKENS];
    float top = -INFINITY;
    for (uint32_t t = first; t < first + visible; t++) {
        float score = 0.0f;
        for (uint32_t k = 0; k < key_dim; k++) {
            size_t at = ((size_t)(t / PANEL) * key_dim + k) * PANEL + t % PANEL;
            score = fmaf(q[k], element(keys, kv_bf16, at), score);
        }
        p[t] = score * scale;
        top = p[t] > top ? p[t] : top;
    }
    top += 0.0f; /* -0 becomes +0: which zero came first must not show */

    float sum = 0.0f;
    for (uint32_t t = first; t < first + visible; t++) {
        p[t] = exp_inline(p[t] - top);
        sum += p[t];
    }
    for (uint32_t i = 0; i < value_dim; i++) {
        float acc = 0.0f;
        for (uint32_t t = first; t < first + visible; t++)
            acc = fmaf(p[t], element(values, kv_bf16, (size_t)t * value_dim + i), acc);
        o[i] = acc;
    }
    *m = top;
    *l = sum;
}

void attention_merge_ref(float *m, float *l, float *o, float m_b, float l_b, const float *o_b,
                         uint32_t value_dim)
{
    float top = *m > m_b ? *m : m_b;
    float a = exp_inline(*m - top);
    float b = exp_inline(m_b - top);
    *l = fmaf(*l, a, l_b * b);
    for (uint32_t i = 0; i < value_dim; i++)
        o[i] = fmaf(o[i], a, o_b[i] * b);
    *m = top;
}
