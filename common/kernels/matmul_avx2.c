/* The product on AVX2. Few rows take two panels at a time (more chains under way). */
#if defined(__x86_64__)
#include "common/kernels/matmul_inline.h"
#include "common/kernels/variants.h"

#define MAX_ROWS 6u /* of any tile here */
#define FEW_ROWS 3u /* up to here a tile takes two panels */
#define UNPACK_ROWS                                                                                \
    24u /* from here on turning a bf16 panel to f32 once beats doing it in every tile */

ALWAYS_INLINE void store_tile(const struct tile *t, const int R, const int P, __m256 acc[][2][2])
{
    const bool whole = t->features >= (uint32_t)P * PANEL;
    UNROLL
    for (int r = 0; r < R; r++) {
        UNROLL
        for (int i = 0; i < 2 * P; i++) {
            uint32_t first = 8 * (uint32_t)i;
            float *y = t->y + (size_t)r * t->ldy + first;
            if (whole) {
                _mm256_storeu_ps(y, acc[r][i / 2][i % 2]);
            } else if (first < t->features) {
                uint32_t lanes = t->features - first;
                _mm256_maskstore_ps(y, first_lanes_avx2(lanes < 8 ? lanes : 8),
                                    acc[r][i / 2][i % 2]);
            }
        }
    }
}

/* On the 16-bit alternative (both sides widened beforehand, madd and add only, no sign): no faster, as the
 * additions compete for the multipliers' ports, and the panel is twice the size.
 *
 * maddubs takes unsigned times signed bytes and saturates at 16 bits: |w| * (q with w's sign) keeps every pair of
 * products at 128 * 127 * 2 = 32512 or less, exactly. */
ALWAYS_INLINE void q8_tile(const struct tile *t, const int R, const int P)
{
    const uint32_t blocks = t->k / BLOCK;
    const int8_t *q = t->x;
    const __m256i offset = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    __m256 acc[MAX_ROWS][2][2];
    UNROLL
    for (int i = 0; i < R * P * 2; i++)
        acc[i / (2 * P)][i / 2 % P][i % 2] = _mm256_setzero_ps();

    for (uint32_t b = 0; b < blocks; b++) {
        if (P == 1) fetch_ahead(t, b);
        UNROLL
        for (int p = 0; p < P; p++) {
            const uint8_t *lines = t->panel + (size_t)p * t->panel_bytes + (size_t)b * 512;
            const uint8_t *ahead = lines + q8_ahead(t, b, P);
            __m256i dot[MAX_ROWS][2];
            UNROLL
            for (int i = 0; i < R * 2; i++)
                dot[i / 2][i % 2] = _mm256_setzero_si256();
            UNROLL
            for (int g = 0; g < 8; g++) {
                if (P == 2) _mm_prefetch((const char *)(ahead + 64 * g), _MM_HINT_T0);
                UNROLL
                for (int h = 0; h < 2; h++) {
                    __m256i w =
                        _mm256_load_si256((const __m256i *)(const void *)(lines + 64 * g + 32 * h));
                    w = _mm256_xor_si256(w, offset);
                    const __m256i magnitude = _mm256_abs_epi8(w);
                    UNROLL
                    for (int r = 0; r < R; r++) {
                        int32_t four;
                        memcpy(&four, q + (size_t)r * t->k + (size_t)b * BLOCK + 4 * g,
                               sizeof four);
                        __m256i x = _mm256_sign_epi8(_mm256_set1_epi32(four), w);
                        __m256i sum = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, x), ones);
                        dot[r][h] = _mm256_add_epi32(dot[r][h], sum);
                        KEEP(dot[r][h]);
                    }
                }
            }
            const uint8_t *scales =
                t->panel + (size_t)p * t->panel_bytes + (size_t)blocks * 512 + (size_t)b * 32;
            if (P == 2 && b % 2 == 0)
                _mm_prefetch((const char *)(scales + SCALES_AHEAD), _MM_HINT_T0);
            UNROLL
            for (int h = 0; h < 2; h++) {
                __m256 wd = _mm256_cvtph_ps(
                    _mm_load_si128((const __m128i *)(const void *)(scales + 16 * h)));
                UNROLL
                for (int r = 0; r < R; r++) {
                    __m256 scale =
                        _mm256_mul_ps(wd, _mm256_set1_ps(t->scales[(size_t)r * blocks + b]));
                    acc[r][p][h] =
                        _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][h]), scale, acc[r][p][h]);
                }
            }
        }
    }
    store_tile(t, R, P, acc);
}

/* One step of K for all rows and panels; `w` are the weights of 16 outputs per panel. */
ALWAYS_INLINE void float_step(const float *const x[], uint32_t k, const int R, const int P,
                              __m256 w[2][2], __m256 acc[][2][2])
{
    UNROLL
    for (int r = 0; r < R; r++) {
        const __m256 value = _mm256_broadcast_ss(x[r] + k);
        UNROLL
        for (int i = 0; i < 2 * P; i++)
            acc[r][i / 2][i % 2] = _mm256_fmadd_ps(w[i / 2][i % 2], value, acc[r][i / 2][i % 2]);
    }
}

ALWAYS_INLINE void f32_step(const struct tile *t, const float *const x[], uint32_t k, const int R,
                            const int P, __m256 acc[][2][2])
{
    __m256 w[2][2];
    UNROLL
    for (int p = 0; p < P; p++) {
        const uint8_t *line = t->panel + (size_t)p * t->panel_bytes + (size_t)k * LINE;
        if (P == 2) _mm_prefetch((const char *)(line + AHEAD_BYTES), _MM_HINT_T0);
        w[p][0] = _mm256_load_ps((const float *)(const void *)line);
        w[p][1] = _mm256_load_ps((const float *)(const void *)(line + 32));
    }
    float_step(x, k, R, P, w, acc);
}

/* Two of K: a 32-bit word holds bf16 at k (low) and k + 1 (high), the upcasts are one shift and one mask. */
ALWAYS_INLINE void bf16_step(const struct tile *t, const float *const x[], uint32_t k, const int R,
                             const int P, __m256 acc[][2][2])
{
    const __m256i high = _mm256_set1_epi32((int32_t)0xffff0000u);
    __m256 even[2][2], odd[2][2];
    UNROLL
    for (int p = 0; p < P; p++) {
        const uint8_t *line = t->panel + (size_t)p * t->panel_bytes + (size_t)k / 2 * LINE;
        if (P == 2) _mm_prefetch((const char *)(line + AHEAD_BYTES), _MM_HINT_T0);
        UNROLL
        for (int h = 0; h < 2; h++) {
            __m256i pair = _mm256_load_si256((const __m256i *)(const void *)(line + 32 * h));
            even[p][h] = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
            odd[p][h] = _mm256_castsi256_ps(_mm256_and_si256(pair, high));
        }
    }
    float_step(x, k, R, P, even, acc);
    float_step(x, k + 1, R, P, odd, acc);
}

ALWAYS_INLINE void float_tile(const struct tile *t, const bool bf16, const int R, const int P)
{
    const float *x[MAX_ROWS];
    UNROLL
    for (int r = 0; r < R; r++)
        x[r] = (const float *)t->x + (size_t)r * t->k;
    __m256 acc[MAX_ROWS][2][2];
    UNROLL
    for (int i = 0; i < R * P * 2; i++)
        acc[i / (2 * P)][i / 2 % P][i % 2] = _mm256_setzero_ps();

    uint32_t k = 0;
    for (; k + BLOCK <= t->k; k += BLOCK) {
        if (P == 1) fetch_ahead(t, k / BLOCK);
        for (uint32_t i = k; i < k + BLOCK; i += 4) {
            UNROLL
            for (uint32_t j = 0; j < 4; j += 2) {
                if (bf16) {
                    bf16_step(t, x, i + j, R, P, acc);
                } else {
                    f32_step(t, x, i + j, R, P, acc);
                    f32_step(t, x, i + j + 1, R, P, acc);
                }
            }
        }
    }
    for (; k < t->k; k += bf16 ? 2 : 1) {
        if (bf16)
            bf16_step(t, x, k, R, P, acc);
        else
            f32_step(t, x, k, R, P, acc);
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

/* Lines of two k become two lines of f32. */
static void upcast_panel(const uint8_t *panel, uint32_t k, uint8_t *out)
{
    const __m256i high = _mm256_set1_epi32((int32_t)0xffff0000u);
    for (uint32_t i = 0; i < k; i++) { /* half lines */
        __m256i pair = _mm256_load_si256((const __m256i *)(const void *)(panel + (size_t)i * 32));
        uint8_t *even = out + (size_t)(i / 2) * 128 + 32 * (i % 2);
        _mm256_store_si256((__m256i *)(void *)even, _mm256_slli_epi32(pair, 16));
        _mm256_store_si256((__m256i *)(void *)(even + LINE), _mm256_and_si256(pair, high));
    }
}

/* A function per shape: only constants unroll. */
#define TILE(kind, R, P)                                                                           \
    static void kind##_##R##x##P(const struct tile *t)                                             \
    {                                                                                              \
        kind##_tile(t, R, P);                                                                      \
    }
#define TILES(kind)                                                                                \
    TILE(kind, 1, 1)                                                                               \
    TILE(kind, 2, 1) TILE(kind, 3, 1) TILE(kind, 1, 2) TILE(kind, 2, 2) TILE(kind, 3, 2)
TILES(q8)
TILES(f32)
TILES(bf16)
TILE(q8, 4, 1)
TILE(bf16, 4, 1) TILE(bf16, 5, 1) TILE(f32, 4, 1) TILE(f32, 5, 1) TILE(f32, 6, 1)

    static const struct tiles q8_tiles = {
        4, FEW_ROWS, FEW_ROWS, {{q8_1x1, q8_2x1, q8_3x1, q8_4x1}, {q8_1x2, q8_2x2, q8_3x2}}};
static const struct tiles f32_tiles = {
    6,
    FEW_ROWS,
    FEW_ROWS,
    {{f32_1x1, f32_2x1, f32_3x1, f32_4x1, f32_5x1, f32_6x1}, {f32_1x2, f32_2x2, f32_3x2}}};
static const struct tiles bf16_tiles = {
    5,
    FEW_ROWS,
    FEW_ROWS,
    {{bf16_1x1, bf16_2x1, bf16_3x1, bf16_4x1, bf16_5x1}, {bf16_1x2, bf16_2x2, bf16_3x2}}};

static struct plan make_plan(const struct packed *w, const struct rows *x, uint8_t *scratch)
{
    const size_t n = (size_t)x->m * x->k;
    if (x->format != ROW_BF16)
        return (struct plan){.tiles = x->format == ROW_Q8 ? &q8_tiles : &f32_tiles,
                             .rows = x->data,
                             .row_bytes = row_data_bytes(x->format, x->k)};
    upcast_rows(x->data, n, (float *)(void *)scratch);
    struct plan plan = {.tiles = &f32_tiles, .rows = scratch, .row_bytes = x->k * sizeof(float)};
    if (w->format == DTYPE_BF16 && x->m < UNPACK_ROWS) plan.tiles = &bf16_tiles;
    if (w->format == DTYPE_BF16 && x->m >= UNPACK_ROWS) {
        plan.panel = scratch + round_up_line(n * sizeof(float));
        plan.unpack = upcast_panel;
    }
    return plan;
}

void matmul_avx2(const struct packed *w, uint32_t panel0, uint32_t panel1, const struct rows *x,
                 float *y, size_t ldy, void *scratch)
{
    assert(x->k == w->k && x->format == w->input && panel1 <= w->panels);
    if (x->m == 0) return;
    if (w->format != DTYPE_F32 && w->format != DTYPE_BF16 && w->format != DTYPE_Q8_0) {
        matmul_ref(w, panel0, panel1, x, y, ldy, scratch);
        return;
    }
    const struct plan plan = make_plan(w, x, scratch);
    run_tiles(&plan, w, panel0, panel1, x, y, ldy);
}
#else
typedef int not_for_this_machine;
#endif
