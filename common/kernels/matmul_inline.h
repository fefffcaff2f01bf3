/* matmul_inline.h - inside the matmul_<vector set>.c files only: how a product is cut into tiles.
 *
 * A tile is R rows by P panels, its sums held in registers over all of K; every output is still one chain over K, so
 * the choice of tiles shows in the time only. Loop order: panels outermost, row tiles inside, so that weights cross
 * memory once. Few rows fetch a few KiB ahead in their own streams; with more rows the panels that come next are fetched
 * into the second cache while the tiles of these run. For many rows, panels that must be unpacked are, UNPACK_K of K at a time, two
 * panels at once: the sums of the first piece are stored and the next goes on from them, which changes no bit. */
#ifndef MOESAIC_KERNELS_MATMUL_INLINE_H
#define MOESAIC_KERNELS_MATMUL_INLINE_H

#include "common/base/check.h"
#include "common/kernels/avx2_inline.h"
#include "common/kernels/kernels.h"
#include "common/kernels/matmul_scratch.h"

#define AHEAD_BYTES 3072u /* few rows: how far a stream is fetched ahead */
#define MOST_ROWS   12u   /* of any tile of any set */

struct tile {
    const uint8_t *panel; /* of the first panel, packed or unpacked */
    size_t panel_bytes;
    uint32_t k;
    uint32_t row_k;      /* numbers from row to row: the K of the whole product */
    const void *x;       /* f32 or int8 [R, row_k] */
    const float *scales; /* ROW_Q8: [R, row_k/32] */
    const void *sums;    /* ROW_Q8: i32 or f32 [R, row_k/32], or /16: see block_sums */
    float *y;            /* first output of the first row */
    size_t ldy;
    uint32_t features; /* outputs that exist from y on; the others are not written */
    bool resume;       /* the sums go on from y instead of +0 */
    /* Many rows: what this tile fetches of the next panels, ahead_step bytes (a multiple of PANEL_LINE, or 0) per 32 of K. */
    const uint8_t *ahead;
    size_t ahead_step;
};

struct tiles {
    uint32_t max_rows;  /* of a tile */
    uint32_t pair_rows; /* up to so many rows in all, tiles take two panels */
    uint32_t few_rows;  /* up to here tiles fetch their own streams ahead */
    void (*run[2][MOST_ROWS])(const struct tile *); /* [panels - 1][rows - 1] */
};

/* How one call goes about it. */
struct plan {
    const struct tiles *tiles;
    const uint8_t *rows;   /* as the tiles take them */
    uint32_t number_bytes; /* of one of their numbers */
    const uint8_t *sums;
    uint32_t sums_each; /* words of `sums` for 32 of K */
    /* NULL: tiles take panels as they are. Else elements [k0, k0 + k) of each panel go through `unpack` into here first. */
    uint8_t *unpacked;
    void (*unpack)(const uint8_t *panel, uint32_t panel_k, uint32_t k0, uint32_t k, uint8_t *out);
};

/* Few rows' own stream: into the second cache. Into the first one, all fetches share its few miss buffers, and block formats
 * reach a third less (README). */
ALWAYS_INLINE void fetch_own(const uint8_t *line)
{
    _mm_prefetch((const char *)line, _MM_HINT_T1);
}

ALWAYS_INLINE void fetch_ahead(const struct tile *t, uint32_t block)
{
    for (size_t i = 0; i < t->ahead_step; i += PANEL_LINE)
        _mm_prefetch((const char *)(t->ahead + block * t->ahead_step + i), _MM_HINT_T1);
}

ALWAYS_INLINE void upcast_rows(const uint16_t *x, size_t n, float *out)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, load_bf16_avx2(x + i));
    for (; i < n; i++)
        out[i] = bf16_to_f32(x[i]);
}

/* All rows by the panels at `t->panel`, elements [k0, k0 + t->k). */
ALWAYS_INLINE void run_row_tiles(const struct plan *plan, const struct rows *x, uint32_t k0,
                                 uint32_t panels, float *y, size_t ldy, struct tile *t)
{
    /* As equal as can be: 20 rows are 5 + 5 + 5 + 5, not 6 + 6 + 6 + 2. */
    const uint32_t tiles = (x->m + plan->tiles->max_rows - 1) / plan->tiles->max_rows;
    const size_t row_blocks = x->k / QUANTS, block0 = k0 / QUANTS;
    for (uint32_t i = 0, row = 0; i < tiles; i++) {
        const uint32_t here = x->m / tiles + (i < x->m % tiles);
        t->x = plan->rows + ((size_t)row * x->k + k0) * plan->number_bytes;
        if (x->scales != NULL) t->scales = x->scales + row * row_blocks + block0;
        if (plan->sums != NULL)
            t->sums = plan->sums + 4 * plan->sums_each * (row * row_blocks + block0);
        t->y = y + row * ldy;
        plan->tiles->run[panels - 1][here - 1](t);
        row += here;
        if (t->ahead_step > 0) t->ahead += (t->k + QUANTS - 1) / QUANTS * t->ahead_step;
    }
}

ALWAYS_INLINE void run_tiles(const struct plan *plan, const struct packed *w, uint32_t panel0,
                             uint32_t panel1, const struct rows *x, float *y, size_t ldy)
{
    const uint32_t used =
        (w->n + PANEL - 1) / PANEL; /* the last panel may be nothing but padding */
    if (panel1 > used) panel1 = used;
    const struct tiles *kind = plan->tiles;
    const uint32_t tiles = (x->m + kind->max_rows - 1) / kind->max_rows;
    const size_t blocks = (w->k + QUANTS - 1) / QUANTS;
    const uint32_t step = plan->unpack != NULL ? UNPACK_K : w->k;

    for (uint32_t p = panel0; p < panel1;) {
        const uint32_t pair = x->m <= kind->pair_rows && panel1 - p >= 2 ? 2 : 1;
        const uint8_t *panel = w->data + p * w->panel_bytes;
        struct tile t = {.panel = panel,
                         .panel_bytes = w->panel_bytes,
                         .row_k = w->k,
                         .ldy = ldy,
                         .features = w->n - p * PANEL};
        if (x->m > kind->few_rows && p + pair < panel1) {
            const size_t next = (panel1 - p - pair < pair ? 1 : pair) * w->panel_bytes;
            t.ahead = panel + pair * w->panel_bytes;
            t.ahead_step = (next / (tiles * blocks) / PANEL_LINE + 1) * PANEL_LINE;
        }
        for (uint32_t k0 = 0; k0 < w->k; k0 += step) {
            t.k = w->k - k0 < step ? w->k - k0 : step;
            t.resume = k0 > 0;
            if (plan->unpack != NULL) {
                t.panel = plan->unpacked;
                t.panel_bytes = unpacked_panel_bytes(w->format, t.k);
                for (uint32_t i = 0; i < pair; i++)
                    plan->unpack(panel + i * w->panel_bytes, w->k, k0, t.k,
                                 plan->unpacked + i * t.panel_bytes);
            }
            run_row_tiles(plan, x, k0, pair, y + (size_t)p * PANEL, ldy, &t);
        }
        p += pair;
    }
}

#endif
