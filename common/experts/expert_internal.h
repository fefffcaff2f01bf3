/* expert_internal.h - what expert_store.c and expert_ffn.c share. */
#ifndef MOESAIC_EXPERTS_INTERNAL_H
#define MOESAIC_EXPERTS_INTERNAL_H

#include "common/experts/experts.h"
#include "common/experts/products.h"
#include "common/modelfile/plan.h"

struct expert {
    struct packed gate, up, down; /* [F, D], [F, D], [D, F], all in `region` */
    uint8_t *region;              /* NULL: not held */
    uint32_t refs;
};

/* Buffers of one wave of rows; they grow and stay. */
struct expert_scratch {
    uint8_t *data;
    size_t bytes;
    struct product *products;
    struct expert_piece *pieces;
    uint32_t n_pieces; /* room for */
};

struct expert_store {
    const struct model_file *file;
    const struct kernels *k;
    enum quantize quantize;
    struct packed gate, up, down; /* geometry that all experts share; no data */
    bool reply_bf16;
    uint32_t n_layers, n_experts;
    size_t region_bytes, up_off, down_off;
    struct expert *experts; /* [n_layers, n_experts] */
    uint32_t count;
    struct expert_scratch scratch;
};

static inline struct expert *expert_at(const struct expert_store *s, uint32_t layer,
                                       uint32_t expert)
{
    return &s->experts[(size_t)layer * s->n_experts + expert];
}

#endif
