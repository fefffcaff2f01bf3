/* The product on AVX-512: which way a matrix goes, and float weights. Tiles take two panels whatever the rows, so that
 * each broadcast of an input serves two products. */
#if defined(__x86_64__)
#include "common/kernels/matmul_avx512_inline.h"
#include "common/kernels/matmul_floats_inline.h"
#include "common/kernels/variants.h"

#define FEW_ROWS       4u
#define TILE_ROWS      12
#define F8_DIRECT_ROWS 4u /* up to here F8 panels are not unpacked */

ALWAYS_INLINE void float_step(const struct tile *t, uint32_t k, const int R, const int P,
                              const __m512 w[2], __m512 acc[][2])
{
    UNROLL
    for (int r = 0; r < R; r++) {
        const __m512 value = _mm512_set1_ps(((const float *)t->x)[(size_t)r * t->row_k + k]);
        UNROLL
        for (int p = 0; p < P; p++)
            acc[r][p] = _mm512_fmadd_ps(w[p], value, acc[r][p]);
    }
}

/* Weights of 16 features at k; BF16: of an even k and of k + 1 (odd). */
ALWAYS_INLINE __m512 float_weights(const enum dtype f, const uint8_t *panel, uint32_t panel_k,
                                   uint32_t k, const bool odd)
{
    const uint8_t *line = panel + k * float_bytes(f);
    switch (f) {
    case DTYPE_F16:
        return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)line));
    case DTYPE_BF16: { /* a 32-bit word holds k (low) and k + 1 (high) */
        const __m512i pair = _mm512_load_si512((const void *)line);
        return _mm512_castsi512_ps(
            odd ? _mm512_and_si512(pair, _mm512_set1_epi32((int32_t)0xffff0000u))
                : _mm512_slli_epi32(pair, 16));
    }
    case DTYPE_F8_E4M3: {
        const uint8_t *scales = panel + panel_f8_scales(panel_k) + k / F8_BLOCK * PANEL_LINE;
        const __m512 small =
            _mm512_cvtph_ps(f8_as_f16_avx2(_mm_load_si128((const __m128i *)(const void *)line)));
        return _mm512_mul_ps(_mm512_mul_ps(small, _mm512_set1_ps(256.0f)),
                             _mm512_load_ps((const void *)scales));
    }
    default:
        return _mm512_load_ps((const void *)line);
    }
}

ALWAYS_INLINE void float_tile(const enum dtype f, const struct tile *t, const int R, const int P)
{
    __m512 acc[TILE_ROWS][2];
    start_tile(t, R, P, acc);
    const bool few = (uint32_t)R <= FEW_ROWS && t->ahead_step == 0;
    for (uint32_t k = 0; k < t->k; k += 2) { /* BF16, F16: k is even */
        if (k % QUANTS == 0) fetch_ahead(t, k / QUANTS);
        UNROLL
        for (uint32_t odd = 0; odd < 2; odd++) {
            if (odd == 1 && k + 1 == t->k) break;
            const uint32_t at = f == DTYPE_BF16 ? k : k + odd;
            __m512 w[2];
            UNROLL
            for (int p = 0; p < P; p++) {
                const uint8_t *panel = t->panel + (size_t)p * t->panel_bytes;
                if (few && enters_line(f, k + odd))
                    fetch_own(panel + (k + odd) * float_bytes(f) + AHEAD_BYTES);
                w[p] = float_weights(f, panel, t->k, at, odd == 1);
            }
            float_step(t, k + odd, R, P, w, acc);
        }
    }
    store_tile(t, R, P, acc);
}

/* A function per shape: only constants unroll. */
#define TILE(name, f, R, P)                                                                        \
    static void name##_##R##x##P(const struct tile *t)                                             \
    {                                                                                              \
        float_tile(f, t, R, P);                                                                    \
    }
#define FOUR(name, f, P)                                                                           \
    TILE(name, f, 1, P) TILE(name, f, 2, P) TILE(name, f, 3, P) TILE(name, f, 4, P)
#define TWELVE(name, f, P)                                                                         \
    FOUR(name, f, P)                                                                               \
    TILE(name, f, 5, P)                                                                            \
    TILE(name, f, 6, P)                                                                            \
    TILE(name, f, 7, P)                                                                            \
    TILE(name, f, 8, P)                                                                            \
    TILE(name, f, 9, P) TILE(name, f, 10, P) TILE(name, f, 11, P) TILE(name, f, 12, P)
#define FOUR_NAMES(name, P) name##_1x##P, name##_2x##P, name##_3x##P, name##_4x##P
#define TWELVE_NAMES(name, P)                                                                      \
    FOUR_NAMES(name, P), name##_5x##P, name##_6x##P, name##_7x##P, name##_8x##P, name##_9x##P,     \
        name##_10x##P, name##_11x##P, name##_12x##P
#define ALL_ROWS(name, f)                                                                          \
    TWELVE(name, f, 1)                                                                             \
    TWELVE(name, f, 2)                                                                             \
    static const struct tiles name##_tiles = {                                                     \
        TILE_ROWS, UINT32_MAX, FEW_ROWS, {{TWELVE_NAMES(name, 1)}, {TWELVE_NAMES(name, 2)}}};

ALL_ROWS(f32, DTYPE_F32)
ALL_ROWS(bf16, DTYPE_BF16)
ALL_ROWS(f16, DTYPE_F16)
FOUR(f8, DTYPE_F8_E4M3, 1)
FOUR(f8, DTYPE_F8_E4M3, 2)
static const struct tiles f8_tiles = {
    FEW_ROWS, UINT32_MAX, FEW_ROWS, {{FOUR_NAMES(f8, 1)}, {FOUR_NAMES(f8, 2)}}};

static void unpack_f8(const uint8_t *panel, uint32_t panel_k, uint32_t k0, uint32_t k, uint8_t *out)
{
    unpack_floats(DTYPE_F8_E4M3, panel, panel_k, k0, k, out);
}

void matmul_avx512(const struct packed *w, uint32_t panel0, uint32_t panel1, const struct rows *x,
                   float *y, size_t ldy, void *scratch)
{
    assert(x->k == w->k && x->format == w->input && panel1 <= w->panels);
    if (x->m == 0) return;
    if (x->format == ROW_Q8) {
        matmul_codes_avx512(w, panel0, panel1, x, y, ldy, scratch);
        return;
    }
    struct plan plan = {.tiles = &f32_tiles, .rows = x->data, .number_bytes = sizeof(float)};
    if (x->format == ROW_BF16) {
        upcast_rows(x->data, (size_t)x->m * x->k, scratch);
        plan.rows = scratch;
    }
    if (w->format == DTYPE_BF16) plan.tiles = &bf16_tiles;
    if (w->format == DTYPE_F16) plan.tiles = &f16_tiles;
    if (w->format == DTYPE_F8_E4M3 && x->m <= F8_DIRECT_ROWS) {
        plan.tiles = &f8_tiles;
    } else if (w->format == DTYPE_F8_E4M3) {
        plan.unpack = unpack_f8;
        plan.unpacked = (uint8_t *)scratch + matmul_rows_bytes(w, x->m);
    }
    run_tiles(&plan, w, panel0, panel1, x, y, ldy);
}
#else
typedef int not_for_this_machine;
#endif
