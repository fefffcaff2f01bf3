/* Rows on their way into a product: quantised or rounded once. */
#include "common/base/check.h"
#include "common/kernels/variants.h"

#define BLOCK 32u
#define MAGIC 12582912.0f /* 1.5 * 2^23: adding and taking it away rounds half to even */

void quantize_row_ref(const float *x, uint32_t k, int8_t *q, float *d)
{
    assert(k % BLOCK == 0);
    for (uint32_t b = 0; b < k / BLOCK; b++, x += BLOCK, q += BLOCK) {
        uint32_t top = 0; /* compared as bits: order-free, and sees NaN and infinity */
        for (uint32_t i = 0; i < BLOCK; i++) {
            uint32_t u = f32_bits(x[i]) & 0x7fffffffu;
            if (u > top) top = u;
        }
        if (top >= 0x7f800000u) {
            d[b] = f32_from_bits(0x7fc00000u);
            memset(q, 0, BLOCK);
            continue;
        }
        float amax = f32_from_bits(top);
        if (!(amax >= 0x1p-100f)) amax = 0.0f; /* else 127 / amax overflows */
        d[b] = amax / 127.0f;
        float id = amax > 0.0f ? 127.0f / amax : 0.0f;
        for (uint32_t i = 0; i < BLOCK; i++) {
            float v = x[i] * id;
            q[i] = (int8_t)((v + MAGIC) - MAGIC);
        }
    }
}

void round_bf16_ref(const float *x, size_t n, uint16_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = bf16_from_f32(x[i]);
}
