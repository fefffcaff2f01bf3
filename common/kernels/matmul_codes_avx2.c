/* Products of block formats on AVX2. maddubs takes unsigned times signed bytes and adds pairs in 16 bits, which saturate: every
 * sum here stays below that, so all are exact. */
#if defined(__x86_64__)
#include "common/kernels/matmul_avx2_inline.h"
#include "common/kernels/matmul_codes_inline.h"
#include "common/tensor/blocks.h"

#define TILE_ROWS 4
/* Up to here panels are not unpacked; those of 4 bits never are, as packed ones add twice as many lines in 16 bits. */
#define DIRECT_ROWS 15u

/* Few rows: two panels at a time, their own streams fetched ahead. */
ALWAYS_INLINE void fetch_block(const int kind, const struct tile *t, uint32_t b,
                               const uint8_t *quants, const uint8_t *scales, const int P)
{
    if (P != 2 || is_unpacked(kind)) return;
    const size_t ahead = quants_ahead(kind, t, b, P);
    UNROLL
    for (uint32_t i = 0; i < kind_layout(kind).quants / PANEL_LINE; i++)
        fetch_own(quants + ahead + 64 * (size_t)i);
    fetch_scales(kind, scales, b);
}

ALWAYS_INLINE __m256i row_codes(const struct tile *t, const int r, uint32_t b, const int g)
{
    int32_t four;
    memcpy(&four, (const int8_t *)t->x + (size_t)r * t->row_k + (size_t)b * QUANTS + 4 * g,
           sizeof four);
    return _mm256_set1_epi32(four);
}

/* Q8_0: |w| * (q with w's sign) keeps every pair of products at 128 * 127 * 2 = 32512 or less. On the 16-bit alternative (both
 * sides widened beforehand, madd and add only, no sign): no faster, as the additions compete for the
 * multipliers' ports, and the panel is twice the size. */
ALWAYS_INLINE void q8_0_dots(const struct tile *t, const uint8_t *quants, uint32_t b, const int R,
                             __m256i dot[][2])
{
    const __m256i offset = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    UNROLL
    for (int i = 0; i < R * 2; i++)
        dot[i / 2][i % 2] = _mm256_setzero_si256();
    UNROLL
    for (int g = 0; g < 8; g++) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            const __m256i w = _mm256_xor_si256(codes_avx2(DTYPE_Q8_0, quants, g, h), offset);
            const __m256i magnitude = _mm256_abs_epi8(w);
            UNROLL
            for (int r = 0; r < R; r++) {
                __m256i x = _mm256_sign_epi8(row_codes(t, r, b, g), w);
                __m256i sum = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, x), ones);
                dot[r][h] = _mm256_add_epi32(dot[r][h], sum);
                KEEP(dot[r][h]);
            }
        }
    }
}

/* Lines whose pairs of products add up below 2^15: 8 * 2 * 15 * 127, 4 * 2 * 31 * 127, 2 * 2 * 63 * 127. */
ALWAYS_INLINE int lines_at_once(const int kind)
{
    if (kind == DTYPE_Q4_0 || kind == DTYPE_Q4_1 || kind == DTYPE_Q4_K) return 8;
    return has_halves(kind) ? 2 : 4;
}

/* Half h of all others: the sum over the lines [g0, g1), starting from what block_sums has. */
ALWAYS_INLINE void codes_dots(const int kind, const struct tile *t, const uint8_t *quants,
                              uint32_t b, const int h, const int g0, const int g1, const int R,
                              __m256i dot[])
{
    const int lines = lines_at_once(kind);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum[TILE_ROWS];
    UNROLL
    for (int g = g0; g < g1; g++) {
        const __m256i w = codes_avx2(kind, quants, g, h);
        UNROLL
        for (int r = 0; r < R; r++) {
            const __m256i pairs = _mm256_maddubs_epi16(w, row_codes(t, r, b, g));
            sum[r] = g % lines == 0 ? pairs : _mm256_add_epi16(sum[r], pairs);
            KEEP(sum[r]);
            if ((g + 1) % lines != 0) continue;
            if (g + 1 - lines == g0) {
                const size_t at = (size_t)r * (t->row_k / QUANTS) + b;
                const int32_t *sums = (const int32_t *)t->sums;
                dot[r] = has_min(kind)      ? _mm256_setzero_si256()
                         : has_halves(kind) ? _mm256_set1_epi32(sums[2 * at + (g0 == 0 ? 0 : 1)])
                                            : _mm256_set1_epi32(sums[at]);
            }
            dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(sum[r], ones));
        }
    }
}

ALWAYS_INLINE void codes_tile(const int kind, const struct tile *t, const int R, const int P)
{
    const struct panel_layout l = kind_layout(kind);
    const uint32_t blocks = t->k / QUANTS, row_blocks = t->row_k / QUANTS;
    __m256 acc[TILE_ROWS][2][2];
    start_tile(t, R, P, acc);
    for (uint32_t b = 0; b < blocks; b++) {
        if (P == 1) fetch_ahead(t, b);
        UNROLL
        for (int p = 0; p < P; p++) {
            const uint8_t *panel = t->panel + (size_t)p * t->panel_bytes;
            const uint8_t *quants = panel + (size_t)b * l.quants,
                          *scales = panel + (size_t)blocks * l.quants;
            fetch_block(kind, t, b, quants, scales, P);
            __m256i dots[TILE_ROWS][2];
            if (kind == DTYPE_Q8_0) q8_0_dots(t, quants, b, R, dots);
            UNROLL
            for (int h = 0; h < 2; h++) {
                const struct factors_avx2 f = factors_avx2(kind, scales, b, h);
                __m256i dot[TILE_ROWS], first[TILE_ROWS];
                if (has_halves(kind)) {
                    codes_dots(kind, t, quants, b, h, 0, 4, R, first);
                    codes_dots(kind, t, quants, b, h, 4, 8, R, dot);
                } else if (kind != DTYPE_Q8_0) {
                    codes_dots(kind, t, quants, b, h, 0, 8, R, dot);
                }
                UNROLL
                for (int r = 0; r < R; r++) {
                    const size_t at = (size_t)r * row_blocks + b;
                    __m256 product = _mm256_cvtepi32_ps(kind == DTYPE_Q8_0 ? dots[r][h] : dot[r]);
                    if (has_halves(kind)) {
                        /* exact below 2^24, from +0 so that nothing is -0 */
                        __m256 whole = _mm256_fmadd_ps(_mm256_cvtepi32_ps(first[r]), f.half[0],
                                                       _mm256_setzero_ps());
                        product = _mm256_fmadd_ps(product, f.half[1], whole);
                    }
                    const __m256 scale = _mm256_mul_ps(f.scale, _mm256_set1_ps(t->scales[at]));
                    acc[r][p][h] = _mm256_fmadd_ps(product, scale, acc[r][p][h]);
                    if (has_min(kind))
                        acc[r][p][h] = _mm256_fmadd_ps(
                            f.min, _mm256_set1_ps(((const float *)t->sums)[at]), acc[r][p][h]);
                }
            }
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
#define TILES(name, kind)                                                                          \
    TILE(name, kind, 1, 1)                                                                         \
    TILE(name, kind, 2, 1)                                                                         \
    TILE(name, kind, 3, 1)                                                                         \
    TILE(name, kind, 4, 1)                                                                         \
    TILE(name, kind, 1, 2)                                                                         \
    TILE(name, kind, 2, 2)                                                                         \
    TILE(name, kind, 3, 2) static const struct tiles name##_tiles = {                              \
        TILE_ROWS,                                                                                 \
        FEW_ROWS,                                                                                  \
        FEW_ROWS,                                                                                  \
        {{name##_1x1, name##_2x1, name##_3x1, name##_4x1}, {name##_1x2, name##_2x2, name##_3x2}}};
#define PACKED(name, kind) TILES(name, kind) UNPACK_CODES(name, kind)

TILES(q8_0, DTYPE_Q8_0)
TILES(unpacked, UNPACKED)
TILES(unpacked_min, UNPACKED_MIN)
TILES(unpacked_six, UNPACKED_SIX)
TILES(q4_0, DTYPE_Q4_0)
TILES(q4_1, DTYPE_Q4_1)
PACKED(q5_0, DTYPE_Q5_0)
PACKED(q5_1, DTYPE_Q5_1)
TILES(q4_k, DTYPE_Q4_K)
PACKED(q5_k, DTYPE_Q5_K)
PACKED(q6_k, DTYPE_Q6_K)
PACKED(mxfp4, DTYPE_MXFP4)

static const struct {
    const struct tiles *packed, *unpacked;
    void (*unpack)(const uint8_t *panel, uint32_t panel_k, uint32_t k0, uint32_t k, uint8_t *out);
} kinds[DTYPE_N_NATIVE] = {
    [DTYPE_Q8_0] = {&q8_0_tiles, NULL, NULL},
    [DTYPE_Q4_0] = {&q4_0_tiles, NULL, NULL},
    [DTYPE_Q4_1] = {&q4_1_tiles, NULL, NULL},
    [DTYPE_Q5_0] = {&q5_0_tiles, &unpacked_tiles, unpack_q5_0},
    [DTYPE_Q5_1] = {&q5_1_tiles, &unpacked_min_tiles, unpack_q5_1},
    [DTYPE_Q4_K] = {&q4_k_tiles, NULL, NULL},
    [DTYPE_Q5_K] = {&q5_k_tiles, &unpacked_min_tiles, unpack_q5_k},
    [DTYPE_Q6_K] = {&q6_k_tiles, &unpacked_six_tiles, unpack_q6_k},
    [DTYPE_MXFP4] = {&mxfp4_tiles, &unpacked_tiles, unpack_mxfp4},
};

void matmul_codes_avx2(const struct packed *w, uint32_t panel0, uint32_t panel1,
                       const struct rows *x, float *y, size_t ldy, uint8_t *scratch)
{
    struct plan plan = {.tiles = kinds[w->format].packed, .rows = x->data, .number_bytes = 1};
    if (w->format != DTYPE_Q8_0) {
        plan.sums = scratch;
        plan.sums_each = block_sums(w->format, (int32_t)codes_offset(w->format), x, scratch);
    }
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
