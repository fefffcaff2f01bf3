/* matmul_codes_inline.h - inside the matmul_codes_<vector set>.c files only: codes and factors of block formats out of their
 * panels (pack.c), panels unpacked, and the sums of rows. All in 256 bits, for both sets; AVX-512 has its own for its tiles. */
#ifndef MOESAIC_KERNELS_MATMUL_CODES_INLINE_H
#define MOESAIC_KERNELS_MATMUL_CODES_INLINE_H

#include "common/kernels/matmul_inline.h"

/* What a tile reads: packed panels of a block format, by its dtype, or unpacked ones by what stands beside the codes. */
enum {
    UNPACKED = DTYPE_N, /* scale */
    UNPACKED_MIN,       /* scale, minimum */
    UNPACKED_SIX        /* two subscales, scale */
};

ALWAYS_INLINE bool is_unpacked(const int kind)
{
    return kind >= UNPACKED;
}

ALWAYS_INLINE bool has_min(const int kind)
{
    return kind == DTYPE_Q4_1 || kind == DTYPE_Q5_1 || kind == DTYPE_Q4_K || kind == DTYPE_Q5_K ||
           kind == UNPACKED_MIN;
}

/* A scale of its own for each half of 32. */
ALWAYS_INLINE bool has_halves(const int kind)
{
    return kind == DTYPE_Q6_K || kind == UNPACKED_SIX;
}

ALWAYS_INLINE bool is_k(const int kind)
{
    return kind == DTYPE_Q4_K || kind == DTYPE_Q5_K || kind == DTYPE_Q6_K;
}

ALWAYS_INLINE struct panel_layout kind_layout(const int kind)
{
    if (!is_unpacked(kind)) return panel_layout((enum dtype)kind);
    const uint32_t factors = kind == UNPACKED ? 1 : kind == UNPACKED_MIN ? 2 : 3;
    return (struct panel_layout){QUANTS * PANEL, QUANTS, factors * PANEL_LINE};
}

/* Lines of codes in a block. */
ALWAYS_INLINE uint32_t block_lines(const int kind)
{
    return kind_layout(kind).quants / PANEL_LINE;
}

/* The run of scales that block b belongs to. */
ALWAYS_INLINE const uint8_t *block_scales(const int kind, const uint8_t *scales, uint32_t b)
{
    const struct panel_layout l = kind_layout(kind);
    return scales + (size_t)(b / (l.group / QUANTS)) * l.group_bytes;
}

/* Few rows: how far ahead the quants of block b fetch; at a panel's end that is in the panel P further on, as
 * between them lie the scales and, of two, the neighbor. */
ALWAYS_INLINE size_t quants_ahead(const int kind, const struct tile *t, uint32_t b, const int P)
{
    const uint32_t blocks = t->k / QUANTS, each = kind_layout(kind).quants;
    if (b + AHEAD_BYTES / each < blocks) return AHEAD_BYTES;
    return AHEAD_BYTES + (size_t)P * t->panel_bytes - (size_t)blocks * each;
}

/* The scales are a stream of their own: block b fetches its share of what is needed as far ahead. */
ALWAYS_INLINE void fetch_scales(const int kind, const uint8_t *scales, uint32_t b)
{
    const struct panel_layout l = kind_layout(kind);
    const uint8_t *run = block_scales(kind, scales, b);
    const uint32_t ahead = (AHEAD_BYTES / (l.group / QUANTS * l.quants) + 1) * l.group_bytes;
    if (l.group == QUANTS) {
        if (b * l.group_bytes % PANEL_LINE == 0) fetch_own(run + ahead);
    } else if (b % 8 < 5) {
        fetch_own(run + ahead + b % 8 * PANEL_LINE);
    }
}

/* ---- codes ---- */

ALWAYS_INLINE __m256i load_256(const uint8_t *p)
{
    return _mm256_load_si256((const __m256i *)(const void *)p);
}

/* Half h (features 8h..) of line g: bytes 4j + i are the codes of k = 4g + i. */
ALWAYS_INLINE __m256i codes_avx2(const int kind, const uint8_t *quants, const int g, const int h)
{
    if (kind == DTYPE_Q8_0 || is_unpacked(kind)) return load_256(quants + 64 * g + 32 * h);
    __m256i v = load_256(quants + 64 * (g % 4) + 32 * h);
    if (g >= 4) v = _mm256_srli_epi16(v, 4);
    v = _mm256_and_si256(v, _mm256_set1_epi8(15));
    if (kind == DTYPE_MXFP4)
        return _mm256_shuffle_epi8(_mm256_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9,
                                                    8, 6, 4, 0, 12, 13, 14, 15, 16, 18, 20, 24, 12,
                                                    11, 10, 9, 8, 6, 4, 0),
                                   v);
    if (block_lines(kind) == 5) {
        __m256i bits = load_256(quants + 256 + 32 * h);
        bits = g < 4 ? _mm256_slli_epi16(bits, 4 - g) : _mm256_srli_epi16(bits, g - 4);
        v = _mm256_or_si256(v, _mm256_and_si256(bits, _mm256_set1_epi8(16)));
    }
    if (block_lines(kind) == 6) {
        __m256i bits = load_256(quants + 256 + 64 * (g / 4) + 32 * h);
        const int at = 2 * (g % 4);
        bits = at < 4 ? _mm256_slli_epi16(bits, 4 - at) : _mm256_srli_epi16(bits, at - 4);
        v = _mm256_or_si256(v, _mm256_and_si256(bits, _mm256_set1_epi8(48)));
    }
    return v;
}

/* ---- factors ---- */

ALWAYS_INLINE __m256 f16_avx2(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

ALWAYS_INLINE __m256 u8_avx2(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

ALWAYS_INLINE __m256 i8_avx2(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

/* mxfp4_unit: 2^(e - 128). */
ALWAYS_INLINE __m256 e8m0_avx2(const uint8_t *p)
{
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm256_castsi256_ps(
        _mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}

struct factors_avx2 {
    __m256 scale, min, half[2]; /* of whole: half[0] dot0 + half[1] dot1 */
};

/* Features 8h.. of block b. */
ALWAYS_INLINE struct factors_avx2 factors_avx2(const int kind, const uint8_t *scales, uint32_t b,
                                               const int h)
{
    struct factors_avx2 f;
    f.scale = f.min = f.half[0] = f.half[1] = _mm256_setzero_ps();
    const uint8_t *run = block_scales(kind, scales, b);
    const uint8_t *part = run + 32 * (b % 8) + 8 * h; /* K formats */
    const float *line = (const float *)(const void *)run + 8 * h;
    switch (kind) {
    case UNPACKED:
        f.scale = _mm256_load_ps(line);
        break;
    case UNPACKED_MIN:
        f.scale = _mm256_load_ps(line);
        f.min = _mm256_load_ps(line + PANEL);
        break;
    case UNPACKED_SIX:
        f.half[0] = _mm256_load_ps(line);
        f.half[1] = _mm256_load_ps(line + PANEL);
        f.scale = _mm256_load_ps(line + 2 * PANEL);
        break;
    case DTYPE_MXFP4:
        f.scale = e8m0_avx2(run + 8 * h);
        break;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
        f.scale = _mm256_mul_ps(f16_avx2(run + 256 + 16 * h), u8_avx2(part));
        f.min = _mm256_mul_ps(f16_avx2(run + 288 + 16 * h), u8_avx2(part + 16));
        f.min = _mm256_xor_ps(f.min, _mm256_set1_ps(-0.0f));
        break;
    case DTYPE_Q6_K:
        f.half[0] = i8_avx2(part);
        f.half[1] = i8_avx2(part + 16);
        f.scale = f16_avx2(run + 256 + 16 * h);
        break;
    default:
        f.scale = f16_avx2(run + 16 * h);
        if (has_min(kind)) f.min = f16_avx2(run + 32 + 16 * h);
        break;
    }
    return f;
}

/* ---- a panel unpacked ---- */

ALWAYS_INLINE void unpack_codes(const int kind, const uint8_t *panel, uint32_t panel_k, uint32_t k0,
                                uint32_t k, uint8_t *out)
{
    const struct panel_layout l = kind_layout(kind);
    const uint32_t blocks = k / QUANTS, block0 = k0 / QUANTS;
    const uint8_t *scales = panel + (size_t)(panel_k / QUANTS) * l.quants;
    float *factor = (float *)(void *)(out + (size_t)blocks * QUANTS * PANEL);
    for (uint32_t b = 0; b < blocks; b++, out += QUANTS * PANEL) {
        const uint8_t *quants = panel + (size_t)(block0 + b) * l.quants;
        UNROLL
        for (int i = 0; i < 16; i++)
            _mm256_store_si256((__m256i *)(void *)(out + 32 * i),
                               codes_avx2(kind, quants, i / 2, i % 2));
        UNROLL
        for (int h = 0; h < 2; h++) {
            const struct factors_avx2 f = factors_avx2(kind, scales, block0 + b, h);
            float *to = factor + 8 * h;
            if (has_halves(kind)) {
                _mm256_store_ps(to, f.half[0]);
                _mm256_store_ps(to + PANEL, f.half[1]);
                _mm256_store_ps(to + 2 * PANEL, f.scale);
            } else {
                _mm256_store_ps(to, f.scale);
                if (has_min(kind)) _mm256_store_ps(to + PANEL, f.min);
            }
        }
        factor += (has_halves(kind) ? 3 : has_min(kind) ? 2 : 1) * PANEL;
    }
}

#define UNPACK_CODES(name, kind)                                                                   \
    static void unpack_##name(const uint8_t *panel, uint32_t panel_k, uint32_t k0, uint32_t k,     \
                              uint8_t *out)                                                        \
    {                                                                                              \
        unpack_codes(kind, panel, panel_k, k0, k, out);                                            \
    }

/* ---- rows ---- */

/* What a row's blocks bring along, for weights of type t: with s the sum of a block's values,
 *   formats with an offset    i32: -offset * s, where the whole-number product of stored codes starts from (Q6_K: of each half)
 *   formats with a minimum    f32: d * s, which the minimum is multiplied with
 * Returns the words per 32 values. */
ALWAYS_INLINE uint32_t block_sums(enum dtype t, int32_t offset, const struct rows *x, void *out)
{
    const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    const int8_t *q = x->data;
    const uint32_t each = has_halves((int)t) ? 2 : 1;
    for (size_t b = 0; b < (size_t)x->m * (x->k / QUANTS); b++) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(q + b * QUANTS));
        __m256i eight = _mm256_madd_epi16(_mm256_maddubs_epi16(ones8, v), ones16);
        __m256i four = _mm256_add_epi32(eight, _mm256_shuffle_epi32(eight, 0x4e));
        four = _mm256_add_epi32(four, _mm256_shuffle_epi32(four, 0xb1));
        const int32_t low = _mm_cvtsi128_si32(_mm256_castsi256_si128(four)),
                      high = _mm_cvtsi128_si32(_mm256_extracti128_si256(four, 1));
        if (each == 2) {
            ((int32_t *)out)[2 * b] = -offset * low;
            ((int32_t *)out)[2 * b + 1] = -offset * high;
        } else if (has_min((int)t)) {
            ((float *)out)[b] = x->scales[b] * (float)(low + high);
        } else {
            ((int32_t *)out)[b] = -offset * (low + high);
        }
    }
    return each;
}

#endif
