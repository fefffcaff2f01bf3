#include "common/tensor/blocks.h"

#include "common/base/check.h"

#define PART 32u

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

uint32_t codes_offset(enum dtype t)
{
    switch (t) {
    case DTYPE_Q8_0:
        return 128;
    case DTYPE_Q4_0:
        return 8;
    case DTYPE_Q5_0:
        return 16;
    case DTYPE_MXFP4:
        return 12;
    case DTYPE_Q6_K:
        return 32;
    default:
        return 0;
    }
}

bool codes_have_min(enum dtype t)
{
    return t == DTYPE_Q4_1 || t == DTYPE_Q5_1 || t == DTYPE_Q4_K || t == DTYPE_Q5_K;
}

/* 16 bytes: low nibbles first. */
static void nibbles(const uint8_t *src, uint8_t code[PART])
{
    for (uint32_t i = 0; i < PART / 2; i++) {
        code[i] = src[i] & 15u;
        code[i + 16] = src[i] >> 4;
    }
}

static void fifth_bits(const uint8_t *src, uint8_t code[PART])
{
    for (uint32_t i = 0; i < PART; i++)
        code[i] |= (uint8_t)(((uint32_t)src[i / 8] >> i % 8 & 1u) << 4);
}

/* Eight 6-bit scales and minima in 12 bytes. */
static void scale_min(const uint8_t *s, uint32_t j, struct codes *out)
{
    if (j < 4) {
        out->scale[0] = s[j] & 63;
        out->min = s[j + 4] & 63;
    } else {
        out->scale[0] = (int16_t)((s[j + 4] & 15) | s[j - 4] >> 6 << 4);
        out->min = (int16_t)(s[j + 4] >> 4 | s[j] >> 6 << 4);
    }
}

/* Parts 2c and 2c + 1 are the low and high nibbles of the same 32 bytes. */
static void k_codes(const uint8_t *nibble, const uint8_t *high, uint32_t part, uint8_t code[PART])
{
    const uint8_t *src = nibble + part / 2 * PART;
    for (uint32_t i = 0; i < PART; i++) {
        code[i] = (uint8_t)(part % 2 ? src[i] >> 4 : src[i] & 15);
        if (high != NULL) code[i] |= (uint8_t)((high[i] >> part & 1) << 4);
    }
}

static void q6_k_codes(const uint8_t *block, uint32_t part, uint8_t code[PART])
{
    const uint32_t half = part / 4, quarter = part % 4;
    const uint8_t *low = block + 64 * half + PART * (quarter % 2);
    const uint8_t *high = block + 128 + PART * half;
    for (uint32_t i = 0; i < PART; i++) {
        uint32_t nibble = quarter < 2 ? low[i] & 15u : low[i] >> 4;
        code[i] = (uint8_t)(nibble | (high[i] >> 2 * quarter & 3u) << 4);
    }
}

void codes_get(enum dtype t, const uint8_t *block, uint32_t part, struct codes *out)
{
    static const uint8_t e2m1[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    switch (t) {
    case DTYPE_Q8_0:
        out->d = load_u16(block);
        for (uint32_t i = 0; i < PART; i++)
            out->code[i] = block[2 + i] ^ 0x80u;
        break;
    case DTYPE_Q4_0:
        out->d = load_u16(block);
        nibbles(block + 2, out->code);
        break;
    case DTYPE_Q4_1:
        out->d = load_u16(block);
        out->m = load_u16(block + 2);
        nibbles(block + 4, out->code);
        break;
    case DTYPE_Q5_0:
        out->d = load_u16(block);
        nibbles(block + 6, out->code);
        fifth_bits(block + 2, out->code);
        break;
    case DTYPE_Q5_1:
        out->d = load_u16(block);
        out->m = load_u16(block + 2);
        nibbles(block + 8, out->code);
        fifth_bits(block + 4, out->code);
        break;
    case DTYPE_MXFP4:
        out->d = block[0];
        nibbles(block + 1, out->code);
        for (uint32_t i = 0; i < PART; i++)
            out->code[i] = e2m1[out->code[i]];
        break;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
        out->d = load_u16(block);
        out->m = load_u16(block + 2);
        scale_min(block + 4, part, out);
        k_codes(block + (t == DTYPE_Q4_K ? 16 : 48), t == DTYPE_Q4_K ? NULL : block + 16, part,
                out->code);
        break;
    case DTYPE_Q6_K:
        out->d = load_u16(block + 208);
        for (uint32_t i = 0; i < 2; i++) {
            int32_t s = block[192 + 2 * part + i];
            out->scale[i] = (int16_t)(s < 128 ? s : s - 256);
        }
        q6_k_codes(block, part, out->code);
        break;
    default:
        assert(false); /* not a native block format */
    }
}

float mxfp4_unit(uint8_t e)
{
    return f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

float f8_e4m3_to_f32(uint8_t code)
{
    const uint32_t sign = (uint32_t)(code & 0x80u) << 24, magnitude = code & 0x7fu;
    if (magnitude == 0x7f) return f32_from_bits(sign | 0x7fc00000u);
    if (magnitude < 8) return f32_from_bits(sign | f32_bits((float)magnitude * 0x1p-9f));
    return f32_from_bits(sign | ((magnitude << 20) + (120u << 23)));
}

void f8_row_to_f32(const uint8_t *src, size_t n, float *dst)
{
    for (size_t i = 0; i < n; i++) {
        float scale;
        memcpy(&scale, src + n + i / F8_BLOCK * sizeof scale, sizeof scale);
        dst[i] = f8_e4m3_to_f32(src[i]) * scale;
    }
}

/* All products are exact: 11 bits of d, 7 of a scale, 6 of a code. Only the addition of a minimum rounds. */
void blocks_to_f32(enum dtype t, const uint8_t *src, size_t n, float *dst)
{
    const uint32_t parts = dtype_block(t) / PART;
    const int32_t offset = (int32_t)codes_offset(t);
    for (size_t p = 0; p < n / PART; p++, dst += PART) {
        struct codes c;
        codes_get(t, src + p / parts * dtype_block_bytes(t), (uint32_t)(p % parts), &c);
        const float d = t == DTYPE_MXFP4 ? mxfp4_unit((uint8_t)c.d) : f16_to_f32(c.d);
        float scale[2] = {d, d}, min = 0.0f;
        if (codes_have_min(t)) min = f16_to_f32(c.m);
        if (t == DTYPE_Q4_K || t == DTYPE_Q5_K) {
            scale[0] = scale[1] = d * (float)c.scale[0];
            min = -(min * (float)c.min);
        }
        if (t == DTYPE_Q6_K)
            for (uint32_t i = 0; i < 2; i++)
                scale[i] = d * (float)c.scale[i];
        for (uint32_t i = 0; i < PART; i++)
            dst[i] = (float)((int32_t)c.code[i] - offset) * scale[i / 16];
        if (codes_have_min(t))
            for (uint32_t i = 0; i < PART; i++)
                dst[i] += min;
    }
}
