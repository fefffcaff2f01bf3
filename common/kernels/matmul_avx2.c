/* The product on AVX2. A tile is R rows by P panels, its sums held in registers over all of K; every output is
 * still one chain over K, so the choice of tiles shows in the time only.
 *
 * Loop order: panels outermost, row tiles inside, so that weights cross memory once. Few rows take two panels
 * at a time (more chains under way) and fetch a few KiB ahead in their own streams; with more rows the next panel is
 * fetched into the second cache while the tiles of this one run. */
#if defined(__x86_64__)
#include "common/base/check.h"
#include "common/kernels/avx2_inline.h"
#include "common/kernels/variants.h"

#define BLOCK       32u
#define LINE        64u
#define AHEAD_BYTES 3072u /* decode: how far a stream is fetched ahead */
#define Q8_ROWS     4u    /* rows of the largest tile */
#define FLOAT_ROWS  6u
#define FEW_ROWS    3u /* up to here a tile takes two panels */

struct tile {
    const uint8_t *panel; /* of the first panel */
    size_t panel_bytes;
    uint32_t k;
    const void *x;       /* f32 or int8 [R, k] */
    const float *scales; /* ROW_Q8: [R, k/32] */
    float *y;            /* first output of the first row */
    size_t ldy;
    uint32_t features;    /* outputs that exist from y on; the others are not written */
    const uint8_t *ahead; /* decode: NULL; else where the lines to be fetched by this tile begin */
    size_t ahead_step;    /* bytes of them per block of 32 of K, a multiple of LINE */
};

ALWAYS_INLINE void fetch_ahead(const struct tile *t, uint32_t block)
{
    const uint8_t *from = t->ahead + block * t->ahead_step;
    for (size_t i = 0; i < t->ahead_step; i += LINE) _mm_prefetch((const char *)(from + i), _MM_HINT_T1);
}

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
                _mm256_maskstore_ps(y, first_lanes_avx2(lanes < 8 ? lanes : 8), acc[r][i / 2][i % 2]);
            }
        }
    }
}

/* maddubs takes unsigned times signed bytes and saturates at 16 bits: |w| * (q with w's sign) keeps every pair of
 * products at 128 * 127 * 2 = 32512 or less, exactly. */
ALWAYS_INLINE void q8_tile(const struct tile *t, const int R, const int P)
{
    const uint32_t blocks = t->k / BLOCK;
    const int8_t *q = t->x;
    const __m256i offset = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    __m256 acc[Q8_ROWS][2][2];
    UNROLL
    for (int i = 0; i < R * P * 2; i++) acc[i / (2 * P)][i / 2 % P][i % 2] = _mm256_setzero_ps();

    for (uint32_t b = 0; b < blocks; b++) {
        if (t->ahead != NULL) fetch_ahead(t, b);
        UNROLL
        for (int p = 0; p < P; p++) {
            const uint8_t *lines = t->panel + (size_t)p * t->panel_bytes + (size_t)b * 512;
            __m256i dot[Q8_ROWS][2];
            UNROLL
            for (int i = 0; i < R * 2; i++) dot[i / 2][i % 2] = _mm256_setzero_si256();
            UNROLL
            for (int g = 0; g < 8; g++) {
                if (t->ahead == NULL) _mm_prefetch((const char *)(lines + 64 * g + AHEAD_BYTES), _MM_HINT_T0);
                UNROLL
                for (int h = 0; h < 2; h++) {
                    __m256i w = _mm256_load_si256((const __m256i *)(const void *)(lines + 64 * g + 32 * h));
                    w = _mm256_xor_si256(w, offset);
                    const __m256i magnitude = _mm256_abs_epi8(w);
                    UNROLL
                    for (int r = 0; r < R; r++) {
                        int32_t four;
                        memcpy(&four, q + (size_t)r * t->k + (size_t)b * BLOCK + 4 * g, sizeof four);
                        __m256i x = _mm256_sign_epi8(_mm256_set1_epi32(four), w);
                        __m256i sum = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, x), ones);
                        dot[r][h] = _mm256_add_epi32(dot[r][h], sum);
                    }
                }
            }
            const uint8_t *scales = t->panel + (size_t)p * t->panel_bytes + (size_t)blocks * 512 + (size_t)b * 32;
            UNROLL
            for (int h = 0; h < 2; h++) {
                __m256 wd = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)(scales + 16 * h)));
                UNROLL
                for (int r = 0; r < R; r++) {
                    __m256 scale = _mm256_mul_ps(wd, _mm256_set1_ps(t->scales[(size_t)r * blocks + b]));
                    acc[r][p][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][h]), scale, acc[r][p][h]);
                }
            }
        }
    }
    store_tile(t, R, P, acc);
}

/* One step of K for all rows and panels; w are the weights of 16 outputs per panel. */
ALWAYS_INLINE void float_step(const float *x, size_t ldx, const int R, const int P, __m256 w[2][2], __m256 acc[][2][2])
{
    UNROLL
    for (int r = 0; r < R; r++) {
        const __m256 value = _mm256_broadcast_ss(x + (size_t)r * ldx);
        UNROLL
        for (int i = 0; i < 2 * P; i++)
            acc[r][i / 2][i % 2] = _mm256_fmadd_ps(w[i / 2][i % 2], value, acc[r][i / 2][i % 2]);
    }
}

ALWAYS_INLINE void f32_tile(const struct tile *t, const int R, const int P)
{
    const float *x = t->x;
    __m256 acc[FLOAT_ROWS][2][2];
    UNROLL
    for (int i = 0; i < R * P * 2; i++) acc[i / (2 * P)][i / 2 % P][i % 2] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < t->k; k++) {
        if (t->ahead != NULL && k % BLOCK == 0) fetch_ahead(t, k / BLOCK);
        __m256 w[2][2];
        UNROLL
        for (int p = 0; p < P; p++) {
            const uint8_t *line = t->panel + (size_t)p * t->panel_bytes + (size_t)k * LINE;
            if (t->ahead == NULL) _mm_prefetch((const char *)(line + AHEAD_BYTES), _MM_HINT_T0);
            w[p][0] = _mm256_load_ps((const float *)(const void *)line);
            w[p][1] = _mm256_load_ps((const float *)(const void *)(line + 32));
        }
        float_step(x + k, t->k, R, P, w, acc);
    }
    store_tile(t, R, P, acc);
}

/* A 32-bit word holds bf16 at k (low) and k + 1 (high): the upcasts are one shift and one mask. */
ALWAYS_INLINE void bf16_tile(const struct tile *t, const int R, const int P)
{
    const float *x = t->x;
    const __m256i high = _mm256_set1_epi32((int32_t)0xffff0000u);
    __m256 acc[FLOAT_ROWS][2][2];
    UNROLL
    for (int i = 0; i < R * P * 2; i++) acc[i / (2 * P)][i / 2 % P][i % 2] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < t->k; k += 2) {
        if (t->ahead != NULL && k % BLOCK == 0) fetch_ahead(t, k / BLOCK);
        __m256 even[2][2], odd[2][2];
        UNROLL
        for (int p = 0; p < P; p++) {
            const uint8_t *line = t->panel + (size_t)p * t->panel_bytes + (size_t)k / 2 * LINE;
            if (t->ahead == NULL) _mm_prefetch((const char *)(line + AHEAD_BYTES), _MM_HINT_T0);
            UNROLL
            for (int h = 0; h < 2; h++) {
                __m256i pair = _mm256_load_si256((const __m256i *)(const void *)(line + 32 * h));
                even[p][h] = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
                odd[p][h] = _mm256_castsi256_ps(_mm256_and_si256(pair, high));
            }
        }
        float_step(x + k, t->k, R, P, even, acc);
        float_step(x + k + 1, t->k, R, P, odd, acc);
    }
    store_tile(t, R, P, acc);
}

/* A function per shape: only constants unroll. */
#define TILE(kind, R, P)                                        \
    static void kind##_##R##x##P(const struct tile *t)          \
    {                                                           \
        kind##_tile(t, R, P);                                   \
    }
TILE(q8, 1, 1) TILE(q8, 2, 1) TILE(q8, 3, 1) TILE(q8, 4, 1)
TILE(q8, 1, 2) TILE(q8, 2, 2) TILE(q8, 3, 2)
TILE(f32, 1, 1) TILE(f32, 2, 1) TILE(f32, 3, 1) TILE(f32, 4, 1) TILE(f32, 5, 1) TILE(f32, 6, 1)
TILE(f32, 1, 2) TILE(f32, 2, 2) TILE(f32, 3, 2)
TILE(bf16, 1, 1) TILE(bf16, 2, 1) TILE(bf16, 3, 1) TILE(bf16, 4, 1) TILE(bf16, 5, 1) TILE(bf16, 6, 1)
TILE(bf16, 1, 2) TILE(bf16, 2, 2) TILE(bf16, 3, 2)

static const struct {
    uint32_t max_rows;
    void (*run[2][FLOAT_ROWS])(const struct tile *); /* [panels - 1][rows - 1] */
} kinds[PACK_N] = {
    [PACK_F32] = {FLOAT_ROWS,
                  {{f32_1x1, f32_2x1, f32_3x1, f32_4x1, f32_5x1, f32_6x1}, {f32_1x2, f32_2x2, f32_3x2}}},
    [PACK_BF16] = {FLOAT_ROWS,
                   {{bf16_1x1, bf16_2x1, bf16_3x1, bf16_4x1, bf16_5x1, bf16_6x1}, {bf16_1x2, bf16_2x2, bf16_3x2}}},
    [PACK_Q8_0] = {Q8_ROWS, {{q8_1x1, q8_2x1, q8_3x1, q8_4x1}, {q8_1x2, q8_2x2, q8_3x2}}},
};

static void upcast(const uint16_t *x, size_t n, float *out)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, load_bf16_avx2(x + i));
    for (; i < n; i++) out[i] = bf16_to_f32(x[i]);
}

void matmul_avx2(const struct packed *w, uint32_t panel0, uint32_t panel1, const struct rows *x, float *y, size_t ldy,
                 void *scratch)
{
    assert(x->k == w->k && x->format == w->input && panel1 <= w->panels);
    if (x->m == 0) return;
    const uint32_t used = (w->n + PANEL - 1) / PANEL; /* the last panel may be nothing but padding */
    if (panel1 > used) panel1 = used;

    const uint8_t *rows = x->data;
    size_t row_bytes = row_data_bytes(x->format, x->k);
    if (x->format == ROW_BF16) {
        upcast(x->data, (size_t)x->m * x->k, scratch);
        rows = scratch;
        row_bytes = (size_t)x->k * sizeof(float);
    }
    const size_t row_scales = row_scale_bytes(x->format, x->k) / sizeof(float);
    const uint32_t blocks = (w->k + BLOCK - 1) / BLOCK;
    const uint32_t max_rows = kinds[w->format].max_rows;
    const uint32_t tiles = (x->m + max_rows - 1) / max_rows; /* as equal as can be: 20 rows are 7 + 7 + 6, not 8 + 8 + 4 */
    const bool few = x->m <= FEW_ROWS;

    for (uint32_t p = panel0; p < panel1;) {
        const uint32_t pair = few && panel1 - p >= 2 ? 2 : 1;
        struct tile t = {
            .panel = w->data + p * w->panel_bytes,
            .panel_bytes = w->panel_bytes,
            .k = w->k,
            .ldy = ldy,
            .features = w->n - p * PANEL,
        };
        if (!few && p + 1 < panel1) {
            t.ahead = t.panel + w->panel_bytes;
            t.ahead_step = (w->panel_bytes / ((size_t)tiles * blocks) / LINE + 1) * LINE;
        }
        for (uint32_t i = 0, row = 0; i < tiles; i++) {
            const uint32_t here = x->m / tiles + (i < x->m % tiles);
            t.x = rows + row * row_bytes;
            t.scales = row_scales > 0 ? x->scales + row * row_scales : NULL;
            t.y = y + row * ldy + (size_t)p * PANEL;
            kinds[w->format].run[pair - 1][here - 1](&t);
            row += here;
            if (t.ahead != NULL) t.ahead += blocks * t.ahead_step;
        }
        p += pair;
    }
}
#else
typedef int not_for_this_machine;
#endif
