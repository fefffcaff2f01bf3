#include "common/tensor/blocks_other.h"

#include <stdbool.h>

#include "common/base/check.h"
#include "common/tensor/iq_tables.h"

#define SUPER 256u /* elements of most blocks here */

static uint16_t u16_at(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t u32_at(const uint8_t *p)
{
    return u16_at(p) | (uint32_t)u16_at(p + 2) << 16;
}

static float f16_at(const uint8_t *p)
{
    return f16_to_f32(u16_at(p));
}

/* ---- K: 16 groups of 16; the codes of element l of a group are in byte l of its half ------------- */

/* The two low bits of element l of group g, of qs[64]. */
static uint32_t code2(const uint8_t *qs, uint32_t g, uint32_t l)
{
    return qs[32 * (g / 8) + 16 * (g % 2) + l] >> (g % 8 / 2 * 2) & 3u;
}

static void q2_k(const uint8_t *b, float *y)
{
    const float d = f16_at(b + 80), dmin = f16_at(b + 82);
    for (uint32_t g = 0; g < 16; g++) {
        const float scale = d * (float)(b[g] & 15), min = dmin * (float)(b[g] >> 4);
        for (uint32_t l = 0; l < 16; l++)
            y[16 * g + l] = scale * (float)code2(b + 16, g, l) - min;
    }
}

/* Scale and codes of group g, for q3_k here and for packing it as Q6_K. */
static int32_t q3_k_scale(const uint8_t *b, uint32_t g)
{
    const uint8_t *s = b + 96;
    uint32_t low = g < 8 ? s[g] & 15u : s[g - 8] >> 4;
    return (int32_t)(low | (s[8 + g % 4] >> (2 * (g / 4)) & 3u) << 4) - 32;
}

static int32_t q3_k_code(const uint8_t *b, uint32_t g, uint32_t l)
{
    bool high = b[16 * (g % 2) + l] >> (g / 2) & 1;
    return (int32_t)code2(b + 32, g, l) - (high ? 0 : 4);
}

static void q3_k(const uint8_t *b, float *y)
{
    const float d = f16_at(b + 108);
    for (uint32_t g = 0; g < 16; g++)
        for (uint32_t l = 0; l < 16; l++)
            y[16 * g + l] = d * (float)q3_k_scale(b, g) * (float)q3_k_code(b, g, l);
}

/* ---- IQ: entries of a code book, signs apart ----------------------------------------------------- */

static const float iq2_levels[4] = {8, 25, 43, 0};
static const float iq3_levels[8] = {4, 12, 20, 28, 36, 44, 52, 62};

/* Seven signs; the eighth makes their number even. */
static uint32_t even_signs(uint32_t seven)
{
    return seven | (uint32_t)(__builtin_popcount(seven) & 1) << 7;
}

static float signed_as(float x, uint32_t signs, uint32_t i)
{
    return signs >> i & 1u ? -x : x;
}

static void put_iq2(uint32_t entry, uint32_t signs, float scale, float *y)
{
    for (uint32_t i = 0; i < 8; i++)
        y[i] = signed_as(scale * iq2_levels[entry >> 2 * i & 3u], signs, i);
}

static void iq2_xxs(const uint8_t *b, float *y)
{
    const float d = f16_at(b);
    for (uint32_t g = 0; g < 8; g++) {
        const uint8_t *index = b + 2 + 8 * g;
        const uint32_t rest = u32_at(index + 4);
        const float scale = d * (float)(2 * (rest >> 28) + 1) * 0.125f;
        for (uint32_t k = 0; k < 4; k++)
            put_iq2(iq2_xxs_book[index[k]], even_signs(rest >> 7 * k & 127u), scale,
                    y + 32 * g + 8 * k);
    }
}

/* Eights k = 0..31 share a scale by twos, of 4 bits each. */
static float iq2_scale(float d, const uint8_t *scales, uint32_t k)
{
    return d * (float)(2 * (scales[k / 4] >> (k / 2 % 2 * 4) & 15) + 1) * 0.125f;
}

static void iq2_xs(const uint8_t *b, float *y)
{
    const float d = f16_at(b);
    for (uint32_t k = 0; k < 32; k++) {
        const uint32_t q = u16_at(b + 2 + 2 * k);
        put_iq2(iq2_xs_book[q & 511u], even_signs(q >> 9), iq2_scale(d, b + 66, k), y + 8 * k);
    }
}

static void iq2_s(const uint8_t *b, float *y)
{
    const float d = f16_at(b);
    for (uint32_t k = 0; k < 32; k++) {
        const uint32_t high = b[66 + k / 4] >> (k % 4 * 2) & 3u;
        put_iq2(iq2_s_book[b[2 + k] | high << 8], b[34 + k], iq2_scale(d, b + 74, k), y + 8 * k);
    }
}

static void iq3_xxs(const uint8_t *b, float *y)
{
    const float d = f16_at(b);
    for (uint32_t k = 0; k < 32; k++) {
        const uint32_t rest = u32_at(b + 66 + k / 4 * 4);
        const float scale = d * (float)(2 * (rest >> 28) + 1) * 0.25f;
        const uint32_t signs = even_signs(rest >> (k % 4 * 7) & 127u);
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t entry = iq3_xxs_book[b[2 + 2 * k + i / 4]];
            y[8 * k + i] = signed_as(scale * iq3_levels[entry >> (i % 4 * 3) & 7u], signs, i);
        }
    }
}

/* Scale of the thirty-twos g, and code of element i of the eights k, for iq3_s here and for packing it as Q6_K. */
static int32_t iq3_s_scale(const uint8_t *b, uint32_t g)
{
    return 2 * (b[106 + g / 2] >> (g % 2 * 4) & 15) + 1;
}

static int32_t iq3_s_code(const uint8_t *b, uint32_t k, uint32_t i)
{
    const uint32_t four = 2 * k + i / 4;
    const uint32_t high = b[66 + four / 8] >> four % 8 & 1u;
    const uint32_t entry = iq3_s_book[b[2 + four] | high << 8];
    const int32_t code = (int32_t)(2 * (entry >> (i % 4 * 3) & 7u) + 1);
    return b[74 + k] >> i & 1 ? -code : code;
}

static void iq3_s(const uint8_t *b, float *y)
{
    const float d = f16_at(b);
    for (uint32_t k = 0; k < 32; k++)
        for (uint32_t i = 0; i < 8; i++)
            y[8 * k + i] = d * (float)iq3_s_scale(b, k / 4) * (float)iq3_s_code(b, k, i);
}

/* -1, 0, 1, all moved an eighth up or down. */
static void put_iq1(uint32_t entry, bool down, float scale, float *y)
{
    const float moved = down ? -1.125f : -0.875f;
    for (uint32_t i = 0; i < 8; i++)
        y[i] = scale * ((float)(entry >> 2 * i & 3u) + moved);
}

static void iq1_s(const uint8_t *b, float *y)
{
    const float d = f16_at(b);
    for (uint32_t k = 0; k < 32; k++) {
        const uint32_t h = u16_at(b + 34 + k / 4 * 2);
        const float scale = d * (float)(2 * (h >> 12 & 7u) + 1);
        put_iq1(iq1_book[b[2 + k] | (h >> (k % 4 * 3) & 7u) << 8], h >> 15 != 0, scale, y + 8 * k);
    }
}

/* The scale's four nibbles stand above four words of sub-scales, 3 bits for two eights each. */
static void iq1_m(const uint8_t *b, float *y)
{
    uint32_t s[4], half = 0;
    for (uint32_t i = 0; i < 4; i++) {
        s[i] = u16_at(b + 48 + 2 * i);
        half |= s[i] >> 12 << 4 * i;
    }
    const float d = f16_to_f32((uint16_t)half);
    for (uint32_t k = 0; k < 32; k++) {
        const uint32_t h = b[32 + k / 2] >> (k % 2 * 4) & 15u;
        const float scale = d * (float)(2 * (s[k / 8] >> (k % 8 / 2 * 3) & 7u) + 1);
        put_iq1(iq1_book[b[k] | (h & 7u) << 8], h >> 3 != 0, scale, y + 8 * k);
    }
}

static const int8_t iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

/* 32 elements of 16 bytes: the low nibbles first. */
static void put_iq4(const uint8_t *qs, float scale, float *y)
{
    for (uint32_t j = 0; j < 16; j++) {
        y[j] = scale * (float)iq4_levels[qs[j] & 15];
        y[j + 16] = scale * (float)iq4_levels[qs[j] >> 4];
    }
}

static void iq4_nl(const uint8_t *b, float *y)
{
    put_iq4(b + 2, f16_at(b), y);
}

static void iq4_xs(const uint8_t *b, float *y)
{
    const float d = f16_at(b);
    for (uint32_t g = 0; g < 8; g++) {
        uint32_t low = b[4 + g / 2] >> (g % 2 * 4) & 15u, high = u16_at(b + 2) >> 2 * g & 3u;
        put_iq4(b + 8 + 16 * g, d * (float)((int32_t)(low | high << 4) - 32), y + 32 * g);
    }
}

/* ---- ternary ------------------------------------------------------------------------------------- */

/* Digit `n` of a byte, which is a fraction in base 3 (of 256). */
static uint32_t digit3(uint8_t byte, uint32_t n)
{
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    return (uint32_t)(uint8_t)(byte * powers[n]) * 3 >> 8;
}

/* Code of element i; the value is (code - 1) d. */
static uint32_t tq1_0_code(const uint8_t *b, uint32_t i)
{
    if (i < 160) return digit3(b[i % 32], i / 32);
    if (i < 240) return digit3(b[32 + i % 16], (i - 160) / 16);
    return digit3(b[48 + i % 4], (i - 240) / 4);
}

static uint32_t tq2_0_code(const uint8_t *b, uint32_t i)
{
    return b[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3u;
}

static void tq1_0(const uint8_t *b, float *y)
{
    const float d = f16_at(b + 52);
    for (uint32_t i = 0; i < SUPER; i++)
        y[i] = d * (float)((int32_t)tq1_0_code(b, i) - 1);
}

static void tq2_0(const uint8_t *b, float *y)
{
    const float d = f16_at(b + 64);
    for (uint32_t i = 0; i < SUPER; i++)
        y[i] = d * (float)((int32_t)tq2_0_code(b, i) - 1);
}

/* ---- NVFP4: sixteens with a scale of 8 bits ------------------------------------------------------ */

static float ue4m3(uint8_t code)
{
    const uint32_t exponent = code >> 3 & 15u, fraction = code & 7u;
    if (code == 0x7f) return 0; /* NaN elsewhere; the reference reads 0 */
    if (exponent == 0) return (float)fraction * 0x1p-9f;
    return f32_from_bits((exponent + 120) << 23 | fraction << 20);
}

static void nvfp4(const uint8_t *b, float *y)
{
    static const float halves[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    for (uint32_t s = 0; s < 4; s++) {
        const float scale = ue4m3(b[s]) * 0.5f;
        for (uint32_t j = 0; j < 8; j++) {
            const uint8_t q = b[4 + 8 * s + j];
            y[16 * s + j] = scale * halves[q & 15];
            y[16 * s + j + 8] = scale * halves[q >> 4];
        }
    }
}

/* ---- rows ---------------------------------------------------------------------------------------- */

typedef void (*block_decoder)(const uint8_t *block, float *y);

static block_decoder decoder_of(enum dtype t)
{
    static const block_decoder decoders[DTYPE_N] = {
        [DTYPE_Q2_K] = q2_k,     [DTYPE_Q3_K] = q3_k,       [DTYPE_IQ1_S] = iq1_s,
        [DTYPE_IQ1_M] = iq1_m,   [DTYPE_IQ2_XXS] = iq2_xxs, [DTYPE_IQ2_XS] = iq2_xs,
        [DTYPE_IQ2_S] = iq2_s,   [DTYPE_IQ3_XXS] = iq3_xxs, [DTYPE_IQ3_S] = iq3_s,
        [DTYPE_IQ4_NL] = iq4_nl, [DTYPE_IQ4_XS] = iq4_xs,   [DTYPE_TQ1_0] = tq1_0,
        [DTYPE_TQ2_0] = tq2_0,   [DTYPE_NVFP4] = nvfp4,
    };
    assert(t >= DTYPE_N_NATIVE && t < DTYPE_N);
    return decoders[t];
}

void blocks_other_to_f32(enum dtype t, const void *src, size_t n, float *dst)
{
    const block_decoder decode = decoder_of(t);
    const size_t block = dtype_block(t), bytes = dtype_block_bytes(t);
    for (size_t i = 0; i < n / block; i++)
        decode((const uint8_t *)src + i * bytes, dst + i * block);
}

/* ---- the same numbers in a format that is computed with ------------------------------------------ */

enum dtype dtype_repacked(enum dtype t)
{
    assert(t < DTYPE_N);
    switch (t) {
    case DTYPE_Q3_K:
    case DTYPE_IQ3_S:
        return DTYPE_Q6_K;
    case DTYPE_IQ4_NL:
        return DTYPE_Q8_0;
    case DTYPE_TQ1_0:
    case DTYPE_TQ2_0:
        return DTYPE_Q4_0;
    default:
        return t < DTYPE_N_NATIVE ? t : DTYPE_BF16;
    }
}

bool dtype_repack_is_exact(enum dtype t)
{
    return dtype_repacked(t) != DTYPE_BF16 || t < DTYPE_N_NATIVE || t == DTYPE_NVFP4;
}

/* Q6_K: four low bits of all, two high bits of all, a scale for each 16, d. Codes from -32 to 31, in order. */
static void put_q6_k(const int8_t codes[SUPER], const int8_t scales[16], const uint8_t *d,
                     uint8_t *out)
{
    memset(out, 0, 192);
    for (uint32_t i = 0; i < SUPER; i++) {
        const uint32_t q = (uint32_t)(codes[i] + 32), half = i / 128, at = i % 128;
        out[64 * half + at % 64] |= (uint8_t)((q & 15u) << (at / 64 * 4));
        out[128 + 32 * half + at % 32] |= (uint8_t)(q >> 4 << (at / 32 * 2));
    }
    memcpy(out + 192, scales, 16);
    memcpy(out + 208, d, 2);
}

static void q3_k_to_q6_k(const uint8_t *b, uint8_t *out)
{
    int8_t codes[SUPER], scales[16];
    for (uint32_t g = 0; g < 16; g++) {
        scales[g] = (int8_t)q3_k_scale(b, g);
        for (uint32_t l = 0; l < 16; l++)
            codes[16 * g + l] = (int8_t)q3_k_code(b, g, l);
    }
    put_q6_k(codes, scales, b + 108, out);
}

static void iq3_s_to_q6_k(const uint8_t *b, uint8_t *out)
{
    int8_t codes[SUPER], scales[16];
    for (uint32_t i = 0; i < SUPER; i++)
        codes[i] = (int8_t)iq3_s_code(b, i / 8, i % 8);
    for (uint32_t g = 0; g < 16; g++)
        scales[g] = (int8_t)iq3_s_scale(b, g / 2);
    put_q6_k(codes, scales, b, out);
}

static void iq4_nl_to_q8_0(const uint8_t *b, uint8_t *out)
{
    memcpy(out, b, 2);
    for (uint32_t j = 0; j < 16; j++) {
        out[2 + j] = (uint8_t)iq4_levels[b[2 + j] & 15];
        out[18 + j] = (uint8_t)iq4_levels[b[2 + j] >> 4];
    }
}

/* Eight blocks of Q4_0, whose codes are 8 more than the value; ours are 1 more. */
static void ternary_to_q4_0(enum dtype t, const uint8_t *b, uint8_t *out)
{
    uint32_t (*code)(const uint8_t *b, uint32_t i) = t == DTYPE_TQ1_0 ? tq1_0_code : tq2_0_code;
    const uint8_t *d = b + (t == DTYPE_TQ1_0 ? 52 : 64);
    for (uint32_t g = 0; g < 8; g++, out += 18) {
        memcpy(out, d, 2);
        for (uint32_t j = 0; j < 16; j++)
            out[2 + j] = (uint8_t)((code(b, 32 * g + j) + 7) | (code(b, 32 * g + j + 16) + 7) << 4);
    }
}

static void to_bf16(enum dtype t, const uint8_t *b, uint8_t *out)
{
    float y[SUPER];
    decoder_of(t)(b, y);
    for (uint32_t i = 0; i < dtype_block(t); i++) {
        const uint16_t half = bf16_from_f32(y[i]);
        memcpy(out + 2 * i, &half, sizeof half);
    }
}

void dtype_repack_row(enum dtype from, const void *src, size_t n, void *dst)
{
    assert(from < DTYPE_N && n % dtype_block(from) == 0);
    const enum dtype to = dtype_repacked(from);
    if (to == from) {
        if (n > 0) memcpy(dst, src, dtype_bytes(from, n));
        return;
    }
    const uint8_t *b = src;
    uint8_t *out = dst;
    const size_t bytes = dtype_block_bytes(from), out_bytes = dtype_bytes(to, dtype_block(from));
    for (size_t i = 0; i < n / dtype_block(from); i++, b += bytes, out += out_bytes) {
        if (from == DTYPE_Q3_K)
            q3_k_to_q6_k(b, out);
        else if (from == DTYPE_IQ3_S)
            iq3_s_to_q6_k(b, out);
        else if (from == DTYPE_IQ4_NL)
            iq4_nl_to_q8_0(b, out);
        else if (to == DTYPE_Q4_0)
            ternary_to_q4_0(from, b, out);
        else
            to_bf16(from, b, out);
    }
}
