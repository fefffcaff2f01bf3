/* panel.h - the size of a matrix as products read it: panels of 16 output features (their bytes: common/kernels/pack.c).
 * Pure, any thread. */
#ifndef MOESAIC_TENSOR_PANEL_H
#define MOESAIC_TENSOR_PANEL_H

#include <assert.h>
#include <stdbool.h>

#include "common/tensor/dtype.h"

#define PANEL      16u /* output features per panel */
#define PANEL_LINE 64u /* panels begin at multiples of this, and their quants come in such lines */
#define QUANTS     32u /* of K that share a scale: a block of an integer panel */

/* A panel of a block format: all its quants, QUANTS of K after QUANTS of K, then all its scales. */
struct panel_layout {
    uint32_t quants;      /* bytes for QUANTS of K */
    uint32_t group;       /* of K that come with one run of scales; K is a multiple of it */
    uint32_t group_bytes; /* of that run */
};

static inline struct panel_layout panel_layout(enum dtype t)
{
    switch (t) {
    case DTYPE_Q8_0:
        return (struct panel_layout){512, 32, 32};
    case DTYPE_Q4_0:
        return (struct panel_layout){256, 32, 32};
    case DTYPE_Q4_1:
        return (struct panel_layout){256, 32, 64};
    case DTYPE_Q5_0:
        return (struct panel_layout){320, 32, 32};
    case DTYPE_Q5_1:
        return (struct panel_layout){320, 32, 64};
    case DTYPE_MXFP4:
        return (struct panel_layout){256, 32, 16};
    case DTYPE_Q4_K:
        return (struct panel_layout){256, 256, 320};
    case DTYPE_Q5_K:
        return (struct panel_layout){320, 256, 320};
    case DTYPE_Q6_K:
        return (struct panel_layout){384, 256, 288};
    default:
        assert(false); /* not a block format that is computed with */
        return (struct panel_layout){0, 1, 0};
    }
}

/* Where the scales of an F8 panel begin: behind its codes, a line of 16 f32 per F8_BLOCK of K. */
static inline uint64_t panel_f8_scales(uint64_t k)
{
    return (k * PANEL + PANEL_LINE - 1) / PANEL_LINE * PANEL_LINE;
}

/* The type of the panels for a matrix of native type t with K inputs: t, but F32 for 16-bit numbers and odd K, as panels of
 * those hold pairs along K. */
enum dtype panel_dtype(enum dtype t, uint64_t k);

/* Bytes of one panel of native type t, a multiple of PANEL_LINE; 0: no such panel for this K. */
uint64_t panel_bytes(enum dtype t, uint64_t k);

/* Panels of n features: an even number, so that products may take two at a time. */
static inline uint64_t panel_count(uint64_t n)
{
    return (n + 2 * PANEL - 1) / (2 * PANEL) * 2;
}

#endif
