/* The product on AVX-512 with VNNI. A line of a panel is one register; tiles take two panels whatever the rows, so that
 * each broadcast of an input serves two products. */
#if defined(__x86_64__)
#include "common/kernels/matmul_inline.h"
#include "common/kernels/variants.h"

#define Q8_ROWS    8u
#define FLOAT_ROWS 12u
#define FEW_ROWS   4u

ALWAYS_INLINE void store_tile(const struct tile *t, const int R, const int P, __m512 acc[][2])
{
    UNROLL
    for (int r = 0; r < R; r++) {
        UNROLL
        for (int p = 0; p < P; p++) {
            const uint32_t first = PANEL * (uint32_t)p;
            if (first >= t->features) continue;
            const uint32_t lanes = t->features - first < PANEL ? t->features - first : PANEL;
            _mm512_mask_storeu_ps(t->y + (size_t)r * t->ldy + first,
                                  (__mmask16)(0xffffu >> (PANEL - lanes)), acc[r][p]);
        }
    }
}

/* A line of a few rows' own stream. */
ALWAYS_INLINE void fetch_own(const struct tile *t, const int R, const uint8_t *line)
{
    if ((uint32_t)R <= FEW_ROWS && t->ahead_step == 0)
        _mm_prefetch((const char *)line, _MM_HINT_T0);
}

/* vpdpbusd takes unsigned times signed bytes, and quants are stored + 128: a block's sum starts at -128 times the sum
 * of the row's 32 values, and ends at the exact product. */
ALWAYS_INLINE void q8_tile(const struct tile *t, const int R, const int P)
{
    const uint32_t blocks = t->k / BLOCK;
    const int8_t *q = t->x;
    __m512 acc[Q8_ROWS][2];
    UNROLL
    for (int i = 0; i < R * P; i++)
        acc[i / P][i % P] = _mm512_setzero_ps();

    for (uint32_t b = 0; b < blocks; b++) {
        fetch_ahead(t, b);
        const size_t ahead = q8_ahead(t, b, P);
        __m512i dot[Q8_ROWS][2];
        UNROLL
        for (int i = 0; i < R * P; i++)
            dot[i / P][i % P] = _mm512_set1_epi32(t->starts[(size_t)(i / P) * blocks + b]);
        UNROLL
        for (int g = 0; g < 8; g++) {
            __m512i w[2];
            UNROLL
            for (int p = 0; p < P; p++) {
                const uint8_t *line =
                    t->panel + (size_t)p * t->panel_bytes + (size_t)b * 512 + 64 * (size_t)g;
                fetch_own(t, R, line + ahead);
                w[p] = _mm512_load_si512((const void *)line);
            }
            UNROLL
            for (int r = 0; r < R; r++) {
                int32_t four;
                memcpy(&four, q + (size_t)r * t->k + (size_t)b * BLOCK + 4 * g, sizeof four);
                const __m512i x = _mm512_set1_epi32(four);
                UNROLL
                for (int p = 0; p < P; p++)
                    dot[r][p] = _mm512_dpbusd_epi32(dot[r][p], w[p], x);
            }
        }
        UNROLL
        for (int p = 0; p < P; p++) {
            const uint8_t *scales =
                t->panel + (size_t)p * t->panel_bytes + (size_t)blocks * 512 + (size_t)b * 32;
            if (b % 2 == 0) fetch_own(t, R, scales + SCALES_AHEAD);
            const __m512 wd =
                _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)scales));
            UNROLL
            for (int r = 0; r < R; r++) {
                const __m512 scale =
                    _mm512_mul_ps(wd, _mm512_set1_ps(t->scales[(size_t)r * blocks + b]));
                acc[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][p]), scale, acc[r][p]);
            }
        }
    }
    store_tile(t, R, P, acc);
}

ALWAYS_INLINE void float_step(const struct tile *t, uint32_t k, const int R, const int P,
                              const __m512 w[2], __m512 acc[][2])
{
    UNROLL
    for (int r = 0; r < R; r++) {
        const __m512 value = _mm512_set1_ps(((const float *)t->x)[(size_t)r * t->k + k]);
        UNROLL
        for (int p = 0; p < P; p++)
            acc[r][p] = _mm512_fmadd_ps(w[p], value, acc[r][p]);
    }
}

ALWAYS_INLINE void f32_step(const struct tile *t, uint32_t k, const int R, const int P,
                            __m512 acc[][2])
{
    __m512 w[2];
    UNROLL
    for (int p = 0; p < P; p++) {
        const uint8_t *line = t->panel + (size_t)p * t->panel_bytes + (size_t)k * LINE;
        fetch_own(t, R, line + AHEAD_BYTES);
        w[p] = _mm512_load_ps((const void *)line);
    }
    float_step(t, k, R, P, w, acc);
}

/* Two of K: a 32-bit word holds bf16 at k (low) and k + 1 (high), the upcasts are one shift and one mask. */
ALWAYS_INLINE void bf16_step(const struct tile *t, uint32_t k, const int R, const int P,
                             __m512 acc[][2])
{
    const __m512i high = _mm512_set1_epi32((int32_t)0xffff0000u);
    __m512 even[2], odd[2];
    UNROLL
    for (int p = 0; p < P; p++) {
        const uint8_t *line = t->panel + (size_t)p * t->panel_bytes + (size_t)k / 2 * LINE;
        fetch_own(t, R, line + AHEAD_BYTES);
        const __m512i two = _mm512_load_si512((const void *)line);
        even[p] = _mm512_castsi512_ps(_mm512_slli_epi32(two, 16));
        odd[p] = _mm512_castsi512_ps(_mm512_and_si512(two, high));
    }
    float_step(t, k, R, P, even, acc);
    float_step(t, k + 1, R, P, odd, acc);
}

ALWAYS_INLINE void float_tile(const struct tile *t, const bool bf16, const int R, const int P)
{
    __m512 acc[FLOAT_ROWS][2];
    UNROLL
    for (int i = 0; i < R * P; i++)
        acc[i / P][i % P] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < t->k; k += 2) { /* bf16: k is even */
        if (k % BLOCK == 0) fetch_ahead(t, k / BLOCK);
        if (bf16) {
            bf16_step(t, k, R, P, acc);
        } else {
            f32_step(t, k, R, P, acc);
            if (k + 1 < t->k) f32_step(t, k + 1, R, P, acc);
        }
    }
    store_tile(t, R, P, acc);
}

ALWAYS_INLINE void f32_tile(const struct tile *t, const int R, const int P)
{
    float_tile(t, false, R, P);
}

ALWAYS_INLINE void bf16_tile(const struct tile *t, const int R, const int P)
{
    float_tile(t, true, R, P);
}

/* A function per shape: only constants unroll. */
#define TILE(kind, R, P)                                                                           \
    static void kind##_##R##x##P(const struct tile *t)                                             \
    {                                                                                              \
        kind##_tile(t, R, P);                                                                      \
    }
#define EIGHT(make, kind, P)                                                                       \
    make(kind, 1, P) make(kind, 2, P) make(kind, 3, P) make(kind, 4, P) make(kind, 5, P)           \
        make(kind, 6, P) make(kind, 7, P) make(kind, 8, P)
#define TWELVE(make, kind, P)                                                                      \
    EIGHT(make, kind, P)                                                                           \
    make(kind, 9, P) make(kind, 10, P) make(kind, 11, P) make(kind, 12, P)
EIGHT(TILE, q8, 1)
EIGHT(TILE, q8, 2)
TWELVE(TILE, f32, 1)
TWELVE(TILE, f32, 2) TWELVE(TILE, bf16, 1) TWELVE(TILE, bf16, 2)

#define NAME(kind, R, P) kind##_##R##x##P,
    static const struct tiles q8_tiles = {
        Q8_ROWS, UINT32_MAX, FEW_ROWS, {{EIGHT(NAME, q8, 1)}, {EIGHT(NAME, q8, 2)}}};
static const struct tiles f32_tiles = {
    FLOAT_ROWS, UINT32_MAX, FEW_ROWS, {{TWELVE(NAME, f32, 1)}, {TWELVE(NAME, f32, 2)}}};
static const struct tiles bf16_tiles = {
    FLOAT_ROWS, UINT32_MAX, FEW_ROWS, {{TWELVE(NAME, bf16, 1)}, {TWELVE(NAME, bf16, 2)}}};

/* -128 times the sum of each block's 32 values. */
static void block_starts(const struct rows *x, int32_t *out)
{
    const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    const int8_t *q = x->data;
    for (size_t b = 0; b < (size_t)x->m * (x->k / BLOCK); b++) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(q + b * BLOCK));
        __m256i eight = _mm256_madd_epi16(_mm256_maddubs_epi16(ones8, v), ones16);
        __m128i four =
            _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
        out[b] = -128 * _mm_cvtsi128_si32(four);
    }
}

void matmul_avx512(const struct packed *w, uint32_t panel0, uint32_t panel1, const struct rows *x,
                   float *y, size_t ldy, void *scratch)
{
    assert(x->k == w->k && x->format == w->input && panel1 <= w->panels);
    if (x->m == 0) return;
    if (w->format != DTYPE_F32 && w->format != DTYPE_BF16 && w->format != DTYPE_Q8_0) {
        matmul_ref(w, panel0, panel1, x, y, ldy, scratch);
        return;
    }
    struct plan plan = {
        .tiles = &f32_tiles, .rows = x->data, .row_bytes = row_data_bytes(x->format, x->k)};
    if (x->format == ROW_Q8) {
        block_starts(x, scratch);
        plan.tiles = &q8_tiles;
        plan.starts = scratch;
    } else if (x->format == ROW_BF16) {
        upcast_rows(x->data, (size_t)x->m * x->k, scratch);
        plan.rows = scratch;
        plan.row_bytes = x->k * sizeof(float);
        if (w->format == DTYPE_BF16) plan.tiles = &bf16_tiles;
    }
    run_tiles(&plan, w, panel0, panel1, x, y, ldy);
}
#else
typedef int not_for_this_machine;
#endif
