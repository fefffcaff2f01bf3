/* expert_internal.h - what expert_store.c and expert_ffn.c share. */
#ifndef MOESAIC_EXPERTS_INTERNAL_H
#define MOESAIC_EXPERTS_INTERNAL_H

#include "common/experts/experts.h"
#include "common/experts/products.h"
#include "common/modelfile/plan.h"

struct expert {
    uint8_t *region; /* the layer's geometry says what is where; NULL: not held */
    uint32_t refs;
};

/* What all experts of a layer share. */
struct expert_geometry {
    struct packed gate, up, down; /* [F, D], [F, D], [D, F]; no data */
    size_t up_off, down_off, gate_bias_off, up_bias_off,
        down_bias_off; /* in the region; biases are f32 */
    size_t region_bytes;
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
    const struct hparams *hp;
    struct expert_geometry
        *layers; /* [n_layers]; zero where dense, or where no expert is on this machine */
    bool reply_bf16;
    uint32_t n_layers, n_experts;
    size_t held_bytes;
    struct expert *experts; /* [n_layers, n_experts] */
    uint32_t count;
    struct expert_scratch scratch;
};

/* A matrix of an expert, from its geometry and where it begins in the region. */
static inline struct packed expert_matrix(const struct packed *shape, uint8_t *region, size_t off)
{
    struct packed w = *shape;
    w.data = region + off;
    return w;
}

static inline struct expert *expert_at(const struct expert_store *s, uint32_t layer,
                                       uint32_t expert)
{
    return &s->experts[(size_t)layer * s->n_experts + expert];
}

#endif
