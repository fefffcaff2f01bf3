/* Attention of rows over one block of 64 keys: one row after the other, one number after the other. */
#include <math.h>

#include "common/base/check.h"
#include "common/kernels/exp_inline.h"
#include "common/kernels/variants.h"

static float element(const void *base, bool bf16, size_t i)
{
    return bf16 ? bf16_to_f32(((const uint16_t *)base)[i]) : ((const float *)base)[i];
}

/* Number k of token t's key. */
static float key_element(const struct attention_shape *s, const void *keys, uint32_t t, uint32_t k)
{
    size_t at = ((size_t)(t / PANEL) * s->key_dim + k) * PANEL + t % PANEL;
    return element(keys, s->kv_bf16, at);
}

static float value_element(const struct attention_shape *s, const void *keys, const void *values,
                           uint32_t t, uint32_t i)
{
    if (values == NULL) return key_element(s, keys, t, i);
    return element(values, s->kv_bf16, (size_t)t * s->value_dim + i);
}

static void meet(const struct attention_shape *s, struct attention_row *row, const void *keys,
                 const void *values)
{
    const uint32_t first = row->first, end = first + row->visible;
    assert(first < ATTENTION_TOKENS && row->visible <= ATTENTION_TOKENS - first);
    float p[ATTENTION_TOKENS];
    float top = -INFINITY;
    for (uint32_t t = first; t < end; t++) {
        float score = 0.0f;
        for (uint32_t k = 0; k < s->key_dim; k++)
            score = fmaf(row->q[k], key_element(s, keys, t, k), score);
        score *= s->scale;
        if (s->soft_cap > 0.0f) score = s->soft_cap * tanh_inline(score / s->soft_cap);
        if (row->bias != NULL) score += row->bias[t];
        p[t] = score;
        top = score > top ? score : top;
    }
    top += 0.0f; /* -0 becomes +0: which zero came first must not show */

    float sum = 0.0f;
    for (uint32_t t = first; t < end; t++) {
        p[t] = exp_inline(p[t] - top);
        sum += p[t];
    }

    const bool merge = row->l != 0.0f;
    float a = 0.0f, b = 0.0f;
    if (merge) {
        float higher = row->m > top ? row->m : top;
        a = exp_inline(row->m - higher);
        b = exp_inline(top - higher);
        top = higher;
        sum = fmaf(row->l, a, sum * b);
    }
    row->m = top;
    row->l = sum;
    for (uint32_t i = 0; i < s->value_dim; i++) {
        float acc = 0.0f;
        for (uint32_t t = first; t < end; t++)
            acc = fmaf(p[t], value_element(s, keys, values, t, i), acc);
        row->o[i] = merge ? fmaf(row->o[i], a, acc * b) : acc;
    }
}

void attention_block_ref(const struct attention_shape *shape, struct attention_row *rows,
                         uint32_t n, const void *keys, const void *values)
{
    assert(values != NULL || shape->value_dim <= shape->key_dim);
    for (uint32_t r = 0; r < n; r++)
        if (rows[r].visible > 0) meet(shape, &rows[r], keys, values);
}
