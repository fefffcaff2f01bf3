#include "common/tensor/dtype.h"

#include <stdbool.h>

#include "common/base/check.h"
#include "common/tensor/blocks.h"
#include "common/tensor/blocks_other.h"

static const struct {
    const char *name;
    uint32_t block;
    uint32_t bytes;
} formats[DTYPE_N] = {
    [DTYPE_F32] = {"F32", 1, 4},
    [DTYPE_F16] = {"F16", 1, 2},
    [DTYPE_BF16] = {"BF16", 1, 2},
    [DTYPE_F8_E4M3] = {"F8_E4M3", 1, 1},
    [DTYPE_Q8_0] = {"Q8_0", 32, 34},
    [DTYPE_Q4_0] = {"Q4_0", 32, 18},
    [DTYPE_Q4_1] = {"Q4_1", 32, 20},
    [DTYPE_Q5_0] = {"Q5_0", 32, 22},
    [DTYPE_Q5_1] = {"Q5_1", 32, 24},
    [DTYPE_Q4_K] = {"Q4_K", 256, 144},
    [DTYPE_Q5_K] = {"Q5_K", 256, 176},
    [DTYPE_Q6_K] = {"Q6_K", 256, 210},
    [DTYPE_MXFP4] = {"MXFP4", 32, 17},
    [DTYPE_Q2_K] = {"Q2_K", 256, 84},
    [DTYPE_Q3_K] = {"Q3_K", 256, 110},
    [DTYPE_IQ1_S] = {"IQ1_S", 256, 50},
    [DTYPE_IQ1_M] = {"IQ1_M", 256, 56},
    [DTYPE_IQ2_XXS] = {"IQ2_XXS", 256, 66},
    [DTYPE_IQ2_XS] = {"IQ2_XS", 256, 74},
    [DTYPE_IQ2_S] = {"IQ2_S", 256, 82},
    [DTYPE_IQ3_XXS] = {"IQ3_XXS", 256, 98},
    [DTYPE_IQ3_S] = {"IQ3_S", 256, 110},
    [DTYPE_IQ4_NL] = {"IQ4_NL", 32, 18},
    [DTYPE_IQ4_XS] = {"IQ4_XS", 256, 136},
    [DTYPE_TQ1_0] = {"TQ1_0", 256, 54},
    [DTYPE_TQ2_0] = {"TQ2_0", 256, 66},
    [DTYPE_NVFP4] = {"NVFP4", 64, 36},
};

const char *dtype_name(enum dtype t)
{
    assert(t < DTYPE_N);
    return formats[t].name;
}

uint32_t dtype_block(enum dtype t)
{
    assert(t < DTYPE_N);
    return formats[t].block;
}

size_t dtype_block_bytes(enum dtype t)
{
    assert(t < DTYPE_N);
    return formats[t].bytes;
}

size_t dtype_bytes(enum dtype t, size_t n)
{
    assert(n % dtype_block(t) == 0);
    size_t scales = t == DTYPE_F8_E4M3 ? (n + F8_BLOCK - 1) / F8_BLOCK * sizeof(float) : 0;
    return n / dtype_block(t) * dtype_block_bytes(t) + scales;
}

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = h >> 10 & 31u;
    uint32_t fraction = h & 0x3ffu;
    if (exponent == 31) return f32_from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return f32_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    /* Zero or subnormal: fraction * 2^-24 is exact, and keeps the sign of zero through the bits. */
    return f32_from_bits(sign | f32_bits((float)fraction * 0x1p-24f));
}

uint16_t f16_from_f32(float f)
{
    uint32_t bits = f32_bits(f);
    uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t u = bits & 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (u >> 13 & 0x1ffu));
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (u < 0x38800000u) {
        /* Below 2^-14: adding 0.5 puts the unit of the last place at 2^-24, the f16 subnormal step,
         * so that the addition itself rounds to nearest even. */
        float shifted = f32_from_bits(u) + 0.5f;
        return (uint16_t)(sign | (f32_bits(shifted) - f32_bits(0.5f)));
    }
    u += 0xfffu + (u >> 13 & 1u);
    return (uint16_t)(sign | ((u >> 13) - (112u << 10)));
}

void dtype_to_f32(enum dtype t, const void *src, size_t n, float *dst)
{
    assert(t < DTYPE_N && n % dtype_block(t) == 0);
    const uint8_t *bytes = src;
    switch (t) {
    case DTYPE_F32:
        if (n > 0) memcpy(dst, src, n * sizeof *dst);
        break;
    case DTYPE_F16:
    case DTYPE_BF16:
        for (size_t i = 0; i < n; i++) {
            uint16_t half;
            memcpy(&half, bytes + 2 * i, sizeof half);
            dst[i] = t == DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
        }
        break;
    case DTYPE_F8_E4M3:
        f8_row_to_f32(bytes, n, dst);
        break;
    case DTYPE_Q8_0:
    case DTYPE_Q4_0:
    case DTYPE_Q4_1:
    case DTYPE_Q5_0:
    case DTYPE_Q5_1:
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
    case DTYPE_Q6_K:
    case DTYPE_MXFP4:
        blocks_to_f32(t, bytes, n, dst);
        break;
    default:
        assert(t >= DTYPE_N_NATIVE);
        blocks_other_to_f32(t, src, n, dst);
    }
}
