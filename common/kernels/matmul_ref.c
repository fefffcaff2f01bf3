/* The product, written to be read: each output is one chain over K in ascending order. */
#include <math.h>

#include "common/base/check.h"
#include "common/kernels/variants.h"

#define BLOCK 32u

static uint16_t load_u16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static float row_value(const struct rows *x, size_t i)
{
    return x->format == ROW_F32 ? ((const float *)x->data)[i]
                                : bf16_to_f32(((const uint16_t *)x->data)[i]);
}

/* acc = fma(w_k, x_k, acc) from +0. */
static float dot_float(const struct packed *w, const uint8_t *panel, uint32_t j,
                       const struct rows *x, uint32_t row)
{
    float acc = 0.0f;
    for (uint32_t k = 0; k < w->k; k++) {
        float weight;
        if (w->format == PACK_F32)
            memcpy(&weight, panel + 64 * (size_t)k + 4 * j, sizeof weight);
        else
            weight = bf16_to_f32(load_u16(panel + 64 * (size_t)(k / 2) + 4 * j + 2 * (k % 2)));
        acc = fmaf(weight, row_value(x, (size_t)row * w->k + k), acc);
    }
    return acc;
}

/* Per block of 32: an exact whole number, one rounded product of the two scales, one fma. */
static float dot_q8(const struct packed *w, const uint8_t *panel, uint32_t j, const struct rows *x,
                    uint32_t row)
{
    const uint32_t blocks = w->k / BLOCK;
    const int8_t *q = (const int8_t *)x->data + (size_t)row * w->k;
    const float *d = x->scales + (size_t)row * blocks;
    const uint8_t *scales = panel + (size_t)blocks * 512;
    float acc = 0.0f;
    for (uint32_t b = 0; b < blocks; b++) {
        const uint8_t *quants = panel + (size_t)b * 512 + 4 * j;
        int32_t dot = 0;
        for (uint32_t i = 0; i < BLOCK; i++)
            dot += ((int32_t)quants[i / 4 * 64 + i % 4] - 128) * q[b * BLOCK + i];
        float scale = f16_to_f32(load_u16(scales + 32 * (size_t)b + 2 * j)) * d[b];
        acc = fmaf((float)dot, scale, acc);
    }
    return acc;
}

void matmul_ref(const struct packed *w, uint32_t panel0, uint32_t panel1, const struct rows *x,
                float *y, size_t ldy, void *scratch)
{
    (void)scratch;
    assert(x->k == w->k && x->format == w->input && panel1 <= w->panels);
    for (uint32_t p = panel0; p < panel1; p++) {
        const uint8_t *panel = w->data + p * w->panel_bytes;
        for (uint32_t j = 0; j < PANEL && p * PANEL + j < w->n; j++)
            for (uint32_t row = 0; row < x->m; row++)
                y[row * ldy + p * PANEL + j] = w->format == PACK_Q8_0
                                                   ? dot_q8(w, panel, j, x, row)
                                                   : dot_float(w, panel, j, x, row);
    }
}
