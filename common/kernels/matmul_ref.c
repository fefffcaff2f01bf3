/* The product, written to be read: each output is one chain over K in ascending order. pack.c says what a panel holds. */
#include <math.h>

#include "common/base/check.h"
#include "common/kernels/variants.h"
#include "common/tensor/blocks.h"

static uint16_t load_u16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static float load_f16(const uint8_t *p)
{
    return f16_to_f32(load_u16(p));
}

static float load_f32(const uint8_t *p)
{
    float v;
    memcpy(&v, p, sizeof v);
    return v;
}

static float row_value(const struct rows *x, size_t i)
{
    return x->format == ROW_F32 ? ((const float *)x->data)[i]
                                : bf16_to_f32(((const uint16_t *)x->data)[i]);
}

static float float_weight(const struct packed *w, const uint8_t *panel, uint32_t j, uint32_t k)
{
    const size_t at = (size_t)k * PANEL + j;
    switch (w->format) {
    case DTYPE_F32:
        return load_f32(panel + 4 * at);
    case DTYPE_F16:
        return load_f16(panel + 2 * at);
    case DTYPE_BF16:
        return bf16_to_f32(load_u16(panel + (size_t)(k / 2) * PANEL_LINE + 4 * j + 2 * (k % 2)));
    default: { /* F8_E4M3: one rounding */
        const uint8_t *scales = panel + panel_f8_scales(w->k);
        return f8_e4m3_to_f32(panel[at]) *
               load_f32(scales + (size_t)(k / F8_BLOCK) * PANEL_LINE + 4 * j);
    }
    }
}

/* acc = fma(w_k, x_k, acc) from +0. */
static float dot_float(const struct packed *w, const uint8_t *panel, uint32_t j,
                       const struct rows *x, uint32_t row)
{
    float acc = 0.0f;
    for (uint32_t k = 0; k < w->k; k++)
        acc = fmaf(float_weight(w, panel, j, k), row_value(x, (size_t)row * w->k + k), acc);
    return acc;
}

/* Of one feature: 32 weights without their scales. */
static void whole_weights(enum dtype t, const uint8_t *quants, uint32_t j, int32_t out[QUANTS])
{
    static const int32_t e2m1_twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    for (uint32_t k = 0; k < QUANTS; k++) {
        const uint32_t g = k / 4, byte = 4 * j + k % 4;
        if (t == DTYPE_Q8_0) {
            out[k] = (int32_t)quants[g * PANEL_LINE + byte] - 128;
            continue;
        }
        uint32_t code = quants[g % 4 * PANEL_LINE + byte] >> (g < 4 ? 0 : 4) & 15u;
        const uint8_t *more = quants + 4 * PANEL_LINE + byte;
        if (t == DTYPE_Q5_0 || t == DTYPE_Q5_1 || t == DTYPE_Q5_K) code |= (more[0] >> g & 1u) << 4;
        if (t == DTYPE_Q6_K) code |= (more[g / 4 * PANEL_LINE] >> 2 * (g % 4) & 3u) << 4;
        out[k] = t == DTYPE_MXFP4 ? e2m1_twice[code] : (int32_t)code - (int32_t)codes_offset(t);
    }
}

static int32_t dot16(const int32_t *w, const int8_t *q)
{
    int32_t dot = 0;
    for (uint32_t k = 0; k < 16; k++)
        dot += w[k] * q[k];
    return dot;
}

/* Per block of 32: an exact whole number, one rounded product of the scales of weights and row, one fma; where there is a
 * minimum, one more with the row's scaled sum. */
static float dot_blocks(const struct packed *w, const uint8_t *panel, uint32_t j,
                        const struct rows *x, uint32_t row)
{
    const enum dtype t = w->format;
    const struct panel_layout l = panel_layout(t);
    const uint32_t blocks = w->k / QUANTS;
    const int8_t *q = (const int8_t *)x->data + (size_t)row * w->k;
    const float *d = x->scales + (size_t)row * blocks;
    float acc = 0.0f;
    for (uint32_t b = 0; b < blocks; b++, q += QUANTS) {
        const uint8_t *scales =
            panel + (size_t)blocks * l.quants + (size_t)(b * QUANTS / l.group) * l.group_bytes;
        const uint32_t part = b * QUANTS % l.group / QUANTS;
        int32_t whole[QUANTS];
        whole_weights(t, panel + (size_t)b * l.quants, j, whole);
        int32_t dot, dot0 = dot16(whole, q), dot1 = dot16(whole + 16, q + 16);
        float wd, min = 0.0f;
        switch (t) {
        case DTYPE_MXFP4:
            dot = dot0 + dot1;
            wd = mxfp4_unit(scales[j]);
            break;
        case DTYPE_Q4_K:
        case DTYPE_Q5_K:
            dot = dot0 + dot1;
            wd = load_f16(scales + 256 + 2 * j) * (float)scales[32 * part + j]; /* exact */
            min = -(load_f16(scales + 288 + 2 * j) * (float)scales[32 * part + 16 + j]);
            break;
        case DTYPE_Q6_K:
            dot = dot0 * (int8_t)scales[32 * part + j] + dot1 * (int8_t)scales[32 * part + 16 + j];
            wd = load_f16(scales + 256 + 2 * j);
            break;
        default:
            dot = dot0 + dot1;
            wd = load_f16(scales + 2 * j);
            if (codes_have_min(t)) min = load_f16(scales + 32 + 2 * j);
            break;
        }
        const float scale = wd * d[b];
        acc = fmaf((float)dot, scale, acc);
        if (!codes_have_min(t)) continue;
        int32_t sum = 0;
        for (uint32_t k = 0; k < QUANTS; k++)
            sum += q[k];
        const float scaled_sum = d[b] * (float)sum;
        acc = fmaf(min, scaled_sum, acc);
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
                y[row * ldy + p * PANEL + j] = x->format == ROW_Q8 ? dot_blocks(w, panel, j, x, row)
                                                                   : dot_float(w, panel, j, x, row);
    }
}
