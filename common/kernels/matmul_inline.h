/* matmul_inline.h - inside the matmul_<vector set>.c files only: how a product is cut into tiles.
 *
 * A tile is R rows by P panels, its sums held in registers over all of K; every output is still one chain over K, so
 * the choice of tiles shows in the time only. Loop order: panels outermost, row tiles inside, so that weights cross
 * memory once. Few rows fetch a few KiB ahead in their own streams; with more rows the panels that come next are fetched
 * into the second cache while the tiles of these run. */
#ifndef MOESAIC_KERNELS_MATMUL_INLINE_H
#define MOESAIC_KERNELS_MATMUL_INLINE_H

#include "common/base/check.h"
#include "common/kernels/avx2_inline.h"
#include "common/kernels/kernels.h"

#define BLOCK        32u
#define LINE         64u
#define AHEAD_BYTES  3072u /* few rows: how far a stream is fetched ahead */
#define SCALES_AHEAD 384u  /* the same of Q8_0's scales: 32 bytes for 512 of quants, and some */
#define MOST_ROWS    12u   /* of any tile of any set */

struct tile {
    const uint8_t *panel; /* of the first panel */
    size_t panel_bytes;
    uint32_t k;
    const void *x;       /* f32 or int8 [R, k] */
    const float *scales; /* ROW_Q8: [R, k/32] */
    const int32_t *
        starts; /* ROW_Q8, of sets that need it: what a block's whole-number sum starts from, [R, k/32] */
    float *y; /* first output of the first row */
    size_t ldy;
    uint32_t features; /* outputs that exist from y on; the others are not written */
    /* Many rows: what this tile fetches of the next panels, ahead_step bytes (a multiple of LINE, or 0) per 32 of K. */
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
    const uint8_t *rows; /* as the tiles take them */
    size_t row_bytes;
    const int32_t *starts;
    /* NULL: tiles take panels as they are. Else each panel goes through `unpack` into here first (pairs do not). */
    uint8_t *panel;
    void (*unpack)(const uint8_t *panel, uint32_t k, uint8_t *out);
};

ALWAYS_INLINE size_t round_up_line(size_t bytes)
{
    return (bytes + LINE - 1) / LINE * LINE;
}

ALWAYS_INLINE void fetch_ahead(const struct tile *t, uint32_t block)
{
    for (size_t i = 0; i < t->ahead_step; i += LINE)
        _mm_prefetch((const char *)(t->ahead + block * t->ahead_step + i), _MM_HINT_T1);
}

/* Q8_0, few rows: how far ahead the quants of block b fetch; at a panel's end that is in the panel P further on, as
 * between them lie the scales and, of two, the neighbor. */
ALWAYS_INLINE size_t q8_ahead(const struct tile *t, uint32_t b, const int P)
{
    const uint32_t blocks = t->k / BLOCK;
    if (b + AHEAD_BYTES / 512 < blocks) return AHEAD_BYTES;
    return AHEAD_BYTES + (size_t)P * t->panel_bytes - (size_t)blocks * 512;
}

ALWAYS_INLINE void upcast_rows(const uint16_t *x, size_t n, float *out)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, load_bf16_avx2(x + i));
    for (; i < n; i++)
        out[i] = bf16_to_f32(x[i]);
}

ALWAYS_INLINE void run_tiles(const struct plan *plan, const struct packed *w, uint32_t panel0,
                             uint32_t panel1, const struct rows *x, float *y, size_t ldy)
{
    const uint32_t used =
        (w->n + PANEL - 1) / PANEL; /* the last panel may be nothing but padding */
    if (panel1 > used) panel1 = used;
    const struct tiles *kind = plan->tiles;
    const size_t row_scales = row_scale_bytes(x->format, x->k) / sizeof(float);
    const uint32_t blocks = (w->k + BLOCK - 1) / BLOCK;
    /* As equal as can be: 20 rows are 5 + 5 + 5 + 5, not 6 + 6 + 6 + 2. */
    const uint32_t tiles = (x->m + kind->max_rows - 1) / kind->max_rows;

    for (uint32_t p = panel0; p < panel1;) {
        const uint32_t pair = x->m <= kind->pair_rows && panel1 - p >= 2 ? 2 : 1;
        const uint8_t *panel = w->data + p * w->panel_bytes;
        struct tile t = {
            .panel = plan->panel != NULL ? plan->panel : panel,
            .panel_bytes = w->panel_bytes,
            .k = w->k,
            .ldy = ldy,
            .features = w->n - p * PANEL,
        };
        if (plan->panel != NULL) plan->unpack(panel, w->k, plan->panel);
        if (x->m > kind->few_rows && p + pair < panel1) {
            const size_t next = (panel1 - p - pair < pair ? 1 : pair) * w->panel_bytes;
            t.ahead = panel + pair * w->panel_bytes;
            t.ahead_step = (next / ((size_t)tiles * blocks) / LINE + 1) * LINE;
        }
        for (uint32_t i = 0, row = 0; i < tiles; i++) {
            const uint32_t here = x->m / tiles + (i < x->m % tiles);
            t.x = plan->rows + row * plan->row_bytes;
            if (row_scales > 0) t.scales = x->scales + row * row_scales;
            if (plan->starts != NULL) t.starts = plan->starts + row * row_scales;
            t.y = y + row * ldy + (size_t)p * PANEL;
            kind->run[pair - 1][here - 1](&t);
            row += here;
            if (t.ahead_step > 0) t.ahead += blocks * t.ahead_step;
        }
        p += pair;
    }
}

#endif
