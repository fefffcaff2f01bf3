/* Products of block formats on AVX-512 with VNNI. A line of a panel is one register. vpdpbusd takes unsigned times signed bytes,
 * and codes are stored with an offset: a block's sum starts at -offset times the sum of the row's 32 values (block_sums), and
 * ends at the exact product. */
#if defined(__x86_64__)
#include "common/kernels/matmul_avx512_inline.h"
#include "common/kernels/matmul_codes_inline.h"
#include "common/tensor/blocks.h"

#define FEW_ROWS    4u  /* of a tile on packed panels other than Q8_0's */
#define DIRECT_ROWS 16u /* up to here panels are not unpacked */
#define TILE_ROWS   8

/* What the intrinsics take. */
#if defined(__clang__)
typedef unsigned shift_count;
#else
typedef int shift_count;
#endif

ALWAYS_INLINE __m512i codes_avx512(const int kind, const uint8_t *quants, const int g)
{
    if (kind == DTYPE_Q8_0 || is_unpacked(kind))
        return _mm512_load_si512((const void *)(quants + 64 * g));
    __m512i v = _mm512_load_si512((const void *)(quants + 64 * (g % 4)));
    if (g >= 4) v = _mm512_srli_epi16(v, 4);
    v = _mm512_and_si512(v, _mm512_set1_epi8(15));
    if (kind == DTYPE_MXFP4)
        return _mm512_shuffle_epi8(
            _mm512_set4_epi32(0x00040608, 0x090a0b0c, 0x18141210, 0x0f0e0d0c), v);
    if (block_lines(kind) == 5) {
        __m512i bits = _mm512_load_si512((const void *)(quants + 256));
        bits = g < 4 ? _mm512_slli_epi16(bits, (shift_count)(4 - g))
                     : _mm512_srli_epi16(bits, (shift_count)(g - 4));
        v = _mm512_or_si512(v, _mm512_and_si512(bits, _mm512_set1_epi8(16)));
    }
    if (block_lines(kind) == 6) {
        __m512i bits = _mm512_load_si512((const void *)(quants + 256 + 64 * (g / 4)));
        const int at = 2 * (g % 4);
        bits = at < 4 ? _mm512_slli_epi16(bits, (shift_count)(4 - at))
                      : _mm512_srli_epi16(bits, (shift_count)(at - 4));
        v = _mm512_or_si512(v, _mm512_and_si512(bits, _mm512_set1_epi8(48)));
    }
    return v;
}

ALWAYS_INLINE __m512 f16_avx512(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

ALWAYS_INLINE __m512 u8_avx512(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}

ALWAYS_INLINE __m512 i8_avx512(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}

/* mxfp4_unit: 2^(e - 128). */
ALWAYS_INLINE __m512 e8m0_avx512(const uint8_t *p)
{
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __m512i small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    const __mmask16 is_small = _mm512_cmpgt_epi32_mask(_mm512_set1_epi32(2), e);
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, is_small, small));
}

struct factors_avx512 {
    __m512 scale, min, half[2];
};

/* factors_avx2, all 16 features. */
ALWAYS_INLINE struct factors_avx512 factors_avx512(const int kind, const uint8_t *scales,
                                                   uint32_t b)
{
    struct factors_avx512 f;
    f.scale = f.min = f.half[0] = f.half[1] = _mm512_setzero_ps();
    const uint8_t *run = block_scales(kind, scales, b);
    const uint8_t *part = run + 32 * (b % 8); /* K formats */
    const float *line = (const float *)(const void *)run;
    switch (kind) {
    case UNPACKED:
        f.scale = _mm512_load_ps(line);
        break;
    case UNPACKED_MIN:
        f.scale = _mm512_load_ps(line);
        f.min = _mm512_load_ps(line + PANEL);
        break;
    case UNPACKED_SIX:
        f.half[0] = _mm512_load_ps(line);
        f.half[1] = _mm512_load_ps(line + PANEL);
        f.scale = _mm512_load_ps(line + 2 * PANEL);
        break;
    case DTYPE_MXFP4:
        f.scale = e8m0_avx512(run);
        break;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
        f.scale = _mm512_mul_ps(f16_avx512(run + 256), u8_avx512(part));
        f.min = _mm512_mul_ps(f16_avx512(run + 288), u8_avx512(part + 16));
        f.min = _mm512_xor_ps(f.min, _mm512_set1_ps(-0.0f));
        break;
    case DTYPE_Q6_K:
        f.half[0] = i8_avx512(part);
        f.half[1] = i8_avx512(part + 16);
        f.scale = f16_avx512(run + 256);
        break;
    default:
        f.scale = f16_avx512(run);
        if (has_min(kind)) f.min = f16_avx512(run + 32);
        break;
    }
    return f;
}

/* What the whole-number product of (half) a block starts from. */
ALWAYS_INLINE void start_dots(const int kind, const struct tile *t, uint32_t b, const int half,
                              const int R, const int P, __m512i dot[][2])
{
    const int32_t *sums = (const int32_t *)t->sums;
    UNROLL
    for (int i = 0; i < R * P; i++) {
        const size_t at = (size_t)(i / P) * (t->row_k / QUANTS) + b;
        dot[i / P][i % P] = has_min(kind)      ? _mm512_setzero_si512()
                            : has_halves(kind) ? _mm512_set1_epi32(sums[2 * at + (size_t)half])
                                               : _mm512_set1_epi32(sums[at]);
    }
}

/* From +0, so that no product of a zero is -0. */
ALWAYS_INLINE void end_first_half(const int R, const int P, __m512i dot[][2],
                                  const struct factors_avx512 f[2], __m512 whole[][2])
{
    UNROLL
    for (int i = 0; i < R * P; i++)
        whole[i / P][i % P] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[i / P][i % P]),
                                              f[i % P].half[0], _mm512_setzero_ps());
}

ALWAYS_INLINE void codes_tile(const int kind, const struct tile *t, const int R, const int P)
{
    const struct panel_layout l = kind_layout(kind);
    const uint32_t blocks = t->k / QUANTS, row_blocks = t->row_k / QUANTS;
    const bool few = (uint32_t)R <= FEW_ROWS && t->ahead_step == 0 && !is_unpacked(kind);
    const int8_t *q = t->x;
    __m512 acc[TILE_ROWS][2];
    start_tile(t, R, P, acc);

    for (uint32_t b = 0; b < blocks; b++) {
        fetch_ahead(t, b);
        const size_t ahead = few ? quants_ahead(kind, t, b, P) : 0;
        __m512i dot[TILE_ROWS][2];
        __m512 whole[TILE_ROWS][2];
        struct factors_avx512 f[2];
        UNROLL
        for (int p = 0; p < P; p++) {
            const uint8_t *scales =
                t->panel + (size_t)p * t->panel_bytes + (size_t)blocks * l.quants;
            if (few) fetch_scales(kind, scales, b);
            f[p] = factors_avx512(kind, scales, b);
        }
        UNROLL
        for (int g = 0; g < 8; g++) {
            if (has_halves(kind) && g == 4) end_first_half(R, P, dot, f, whole);
            if (g == 0 || (has_halves(kind) && g == 4)) start_dots(kind, t, b, g / 4, R, P, dot);
            __m512i w[2];
            UNROLL
            for (int p = 0; p < P; p++) {
                const uint8_t *quants =
                    t->panel + (size_t)p * t->panel_bytes + (size_t)b * l.quants;
                if (few && (uint32_t)g < l.quants / PANEL_LINE) fetch_own(quants + 64 * g + ahead);
                w[p] = codes_avx512(kind, quants, g);
            }
            UNROLL
            for (int r = 0; r < R; r++) {
                int32_t four;
                memcpy(&four, q + (size_t)r * t->row_k + (size_t)b * QUANTS + 4 * g, sizeof four);
                const __m512i x = _mm512_set1_epi32(four);
                UNROLL
                for (int p = 0; p < P; p++)
                    dot[r][p] = _mm512_dpbusd_epi32(dot[r][p], w[p], x);
            }
        }
        UNROLL
        for (int i = 0; i < R * P; i++) {
            const int r = i / P, p = i % P;
            const size_t at = (size_t)r * row_blocks + b;
            __m512 product = _mm512_cvtepi32_ps(dot[r][p]);
            /* dot0 * scale0 + dot1 * scale1, exact below 2^24 */
            if (has_halves(kind)) product = _mm512_fmadd_ps(product, f[p].half[1], whole[r][p]);
            const __m512 scale = _mm512_mul_ps(f[p].scale, _mm512_set1_ps(t->scales[at]));
            acc[r][p] = _mm512_fmadd_ps(product, scale, acc[r][p]);
            if (has_min(kind))
                acc[r][p] = _mm512_fmadd_ps(f[p].min, _mm512_set1_ps(((const float *)t->sums)[at]),
                                            acc[r][p]);
        }
    }
    store_tile(t, R, P, acc);
}

/* A function per shape: only constants unroll. */
#define TILE(name, kind, R, P)                                                                     \
    static void name##_##R##x##P(const struct tile *t)                                             \
    {                                                                                              \
        codes_tile(kind, t, R, P);                                                                 \
    }
#define FOUR(name, kind, P)                                                                        \
    TILE(name, kind, 1, P) TILE(name, kind, 2, P) TILE(name, kind, 3, P) TILE(name, kind, 4, P)
#define EIGHT(name, kind, P)                                                                       \
    FOUR(name, kind, P)                                                                            \
    TILE(name, kind, 5, P) TILE(name, kind, 6, P) TILE(name, kind, 7, P) TILE(name, kind, 8, P)
#define FOUR_NAMES(name, P) name##_1x##P, name##_2x##P, name##_3x##P, name##_4x##P
#define EIGHT_NAMES(name, P)                                                                       \
    FOUR_NAMES(name, P), name##_5x##P, name##_6x##P, name##_7x##P, name##_8x##P

#define ALL_ROWS(name, kind)                                                                       \
    EIGHT(name, kind, 1)                                                                           \
    EIGHT(name, kind, 2)                                                                           \
    static const struct tiles name##_tiles = {                                                     \
        8, UINT32_MAX, FEW_ROWS, {{EIGHT_NAMES(name, 1)}, {EIGHT_NAMES(name, 2)}}};
#define PACKED(name, kind)                                                                         \
    FOUR(name, kind, 1)                                                                            \
    FOUR(name, kind, 2)                                                                            \
    UNPACK_CODES(name, kind)                                                                       \
    static const struct tiles name##_tiles = {                                                     \
        FEW_ROWS, UINT32_MAX, FEW_ROWS, {{FOUR_NAMES(name, 1)}, {FOUR_NAMES(name, 2)}}};

ALL_ROWS(q8_0, DTYPE_Q8_0)
ALL_ROWS(unpacked, UNPACKED)
ALL_ROWS(unpacked_min, UNPACKED_MIN)
ALL_ROWS(unpacked_six, UNPACKED_SIX)
PACKED(q4_0, DTYPE_Q4_0)
PACKED(q4_1, DTYPE_Q4_1)
PACKED(q5_0, DTYPE_Q5_0)
PACKED(q5_1, DTYPE_Q5_1)
PACKED(q4_k, DTYPE_Q4_K)
PACKED(q5_k, DTYPE_Q5_K)
PACKED(q6_k, DTYPE_Q6_K)
PACKED(mxfp4, DTYPE_MXFP4)

static const struct {
    const struct tiles *packed, *unpacked;
    void (*unpack)(const uint8_t *panel, uint32_t panel_k, uint32_t k0, uint32_t k, uint8_t *out);
} kinds[DTYPE_N_NATIVE] = {
    [DTYPE_Q8_0] = {&q8_0_tiles, NULL, NULL},
    [DTYPE_Q4_0] = {&q4_0_tiles, &unpacked_tiles, unpack_q4_0},
    [DTYPE_Q4_1] = {&q4_1_tiles, &unpacked_min_tiles, unpack_q4_1},
    [DTYPE_Q5_0] = {&q5_0_tiles, &unpacked_tiles, unpack_q5_0},
    [DTYPE_Q5_1] = {&q5_1_tiles, &unpacked_min_tiles, unpack_q5_1},
    [DTYPE_Q4_K] = {&q4_k_tiles, &unpacked_min_tiles, unpack_q4_k},
    [DTYPE_Q5_K] = {&q5_k_tiles, &unpacked_min_tiles, unpack_q5_k},
    [DTYPE_Q6_K] = {&q6_k_tiles, &unpacked_six_tiles, unpack_q6_k},
    [DTYPE_MXFP4] = {&mxfp4_tiles, &unpacked_tiles, unpack_mxfp4},
};

void matmul_codes_avx512(const struct packed *w, uint32_t panel0, uint32_t panel1,
                         const struct rows *x, float *y, size_t ldy, uint8_t *scratch)
{
    struct plan plan = {
        .tiles = kinds[w->format].packed, .rows = x->data, .number_bytes = 1, .sums = scratch};
    plan.sums_each = block_sums(w->format, (int32_t)codes_offset(w->format), x, scratch);
    if (x->m > DIRECT_ROWS && kinds[w->format].unpack != NULL) {
        plan.tiles = kinds[w->format].unpacked;
        plan.unpack = kinds[w->format].unpack;
        plan.unpacked = scratch + matmul_rows_bytes(w, x->m);
    }
    run_tiles(&plan, w, panel0, panel1, x, y, ldy);
}
#else
typedef int not_for_this_machine;
#endif
