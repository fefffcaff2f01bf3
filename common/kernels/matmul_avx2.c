/* The product on AVX2: which way a matrix goes, and float weights. */
#if defined(__x86_64__)
#include "common/kernels/matmul_avx2_inline.h"
#include "common/kernels/matmul_floats_inline.h"
#include "common/kernels/variants.h"

#define TILE_ROWS 6
/* From here on turning a panel to f32 once beats doing it in every tile. */
#define UNPACK_ROWS    24u
#define F8_UNPACK_ROWS 5u

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

/* Steps k and, if there is one, k + 1; k is even. */
ALWAYS_INLINE void two_steps(const enum dtype f, const struct tile *t, const float *const x[],
                             uint32_t k, const bool both, const int R, const int P,
                             __m256 acc[][2][2])
{
    UNROLL
    for (uint32_t odd = 0; odd < 2; odd++) {
        if (odd == 1 && !both) break;
        const uint32_t at = f == DTYPE_BF16 ? k : k + odd;
        __m256 w[2][2];
        UNROLL
        for (int p = 0; p < P; p++) {
            const uint8_t *panel = t->panel + (size_t)p * t->panel_bytes;
            if (P == 2 && enters_line(f, k + odd))
                fetch_own(panel + (k + odd) * float_bytes(f) + AHEAD_BYTES);
            float_weights_avx2(f, panel, t->k, at, w[p], odd == 1);
        }
        float_step(x, k + odd, R, P, w, acc);
    }
}

ALWAYS_INLINE void float_tile(const enum dtype f, const struct tile *t, const int R, const int P)
{
    const float *x[TILE_ROWS];
    UNROLL
    for (int r = 0; r < R; r++)
        x[r] = (const float *)t->x + (size_t)r * t->row_k;
    __m256 acc[TILE_ROWS][2][2];
    start_tile(t, R, P, acc);

    uint32_t k = 0;
    for (; k + QUANTS <= t->k; k += QUANTS) {
        if (P == 1) fetch_ahead(t, k / QUANTS);
        for (uint32_t i = k; i < k + QUANTS; i += 4) {
            two_steps(f, t, x, i, true, R, P, acc);
            two_steps(f, t, x, i + 2, true, R, P, acc);
        }
    }
    for (; k + 2 <= t->k; k += 2)
        two_steps(f, t, x, k, true, R, P, acc);
    if (k < t->k && f != DTYPE_BF16) two_steps(f, t, x, k, false, R, P, acc);
    store_tile(t, R, P, acc);
}

/* A function per shape: only constants unroll. */
#define TILE(name, f, R, P)                                                                        \
    static void name##_##R##x##P(const struct tile *t)                                             \
    {                                                                                              \
        float_tile(f, t, R, P);                                                                    \
    }
#define TILES(name, f)                                                                             \
    TILE(name, f, 1, 1)                                                                            \
    TILE(name, f, 2, 1)                                                                            \
    TILE(name, f, 3, 1)                                                                            \
    TILE(name, f, 4, 1) TILE(name, f, 1, 2) TILE(name, f, 2, 2) TILE(name, f, 3, 2)
TILES(f32, DTYPE_F32)
TILES(bf16, DTYPE_BF16)
TILES(f16, DTYPE_F16)
TILES(f8, DTYPE_F8_E4M3)
TILE(f32, DTYPE_F32, 5, 1)
TILE(f32, DTYPE_F32, 6, 1)
TILE(bf16, DTYPE_BF16, 5, 1)
TILE(f16, DTYPE_F16, 5, 1)

#define FOUR_NAMES(name) name##_1x1, name##_2x1, name##_3x1, name##_4x1
#define PAIR_NAMES(name) name##_1x2, name##_2x2, name##_3x2
static const struct tiles f32_tiles = {
    6, FEW_ROWS, FEW_ROWS, {{FOUR_NAMES(f32), f32_5x1, f32_6x1}, {PAIR_NAMES(f32)}}};
static const struct tiles bf16_tiles = {
    5, FEW_ROWS, FEW_ROWS, {{FOUR_NAMES(bf16), bf16_5x1}, {PAIR_NAMES(bf16)}}};
static const struct tiles f16_tiles = {
    5, FEW_ROWS, FEW_ROWS, {{FOUR_NAMES(f16), f16_5x1}, {PAIR_NAMES(f16)}}};
static const struct tiles f8_tiles = {4, FEW_ROWS, FEW_ROWS, {{FOUR_NAMES(f8)}, {PAIR_NAMES(f8)}}};

#define UNPACK(name, f)                                                                            \
    static void unpack_##name(const uint8_t *panel, uint32_t panel_k, uint32_t k0, uint32_t k,     \
                              uint8_t *out)                                                        \
    {                                                                                              \
        unpack_floats(f, panel, panel_k, k0, k, out);                                              \
    }
UNPACK(bf16, DTYPE_BF16)
UNPACK(f16, DTYPE_F16)
UNPACK(f8, DTYPE_F8_E4M3)

static const struct {
    const struct tiles *packed;
    void (*unpack)(const uint8_t *panel, uint32_t panel_k, uint32_t k0, uint32_t k, uint8_t *out);
    uint32_t unpack_rows;
} kinds[DTYPE_N_NATIVE] = {
    [DTYPE_F32] = {&f32_tiles, NULL, UINT32_MAX},
    [DTYPE_BF16] = {&bf16_tiles, unpack_bf16, UNPACK_ROWS},
    [DTYPE_F16] = {&f16_tiles, unpack_f16, UNPACK_ROWS},
    [DTYPE_F8_E4M3] = {&f8_tiles, unpack_f8, F8_UNPACK_ROWS},
};

void matmul_avx2(const struct packed *w, uint32_t panel0, uint32_t panel1, const struct rows *x,
                 float *y, size_t ldy, void *scratch)
{
    assert(x->k == w->k && x->format == w->input && panel1 <= w->panels);
    if (x->m == 0) return;
    if (x->format == ROW_Q8) {
        matmul_codes_avx2(w, panel0, panel1, x, y, ldy, scratch);
        return;
    }
    struct plan plan = {
        .tiles = kinds[w->format].packed, .rows = x->data, .number_bytes = sizeof(float)};
    if (x->format == ROW_BF16) {
        upcast_rows(x->data, (size_t)x->m * x->k, scratch);
        plan.rows = scratch;
    }
    if (x->m >= kinds[w->format].unpack_rows) {
        plan.tiles = &f32_tiles;
        plan.unpack = kinds[w->format].unpack;
        plan.unpacked = (uint8_t *)scratch + matmul_rows_bytes(w, x->m);
    }
    run_tiles(&plan, w, panel0, panel1, x, y, ldy);
}
#else
typedef int not_for_this_machine;
#endif
