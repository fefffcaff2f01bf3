/* plan.h - what a model will take in memory, and in which format each matrix is held. Pure over an opened model,
 * any thread. Touches no tensor bytes. */
#ifndef MOESAIC_MODELFILE_PLAN_H
#define MOESAIC_MODELFILE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/modelfile/experts_spec.h"
#include "common/modelfile/model_file.h"

enum quantize { QUANTIZE_NONE, QUANTIZE_Q8_0, QUANTIZE_N };

const char *quantize_name(enum quantize q); /* "none", "q8_0": as the digest takes it */
bool quantize_find(const char *name, enum quantize *out); /* false for any other name */

/* THE rule for loaders: the format in which a tensor is packed. Q8_0 for matrices with K a multiple of 32 when
 * asked; router, norms, biases, the embedding look-up and other matrices keep the file's type. A tied head is
 * asked for as W_HEAD and W_EMBED apart. */
enum dtype plan_dtype(enum weight_role role, const struct tensor *t, enum quantize q);

/* Keys and values are held as F32 when the matrices that make them are, else BF16. */
enum dtype plan_kv_dtype(const struct model_file *f, enum quantize q);

/* Bytes of W [n, k] of type t in panels (tensor/panel.h), as kernels' packed_bytes; 0 for a type that is not computed with, or
 * a k that its panels do not have. */
uint64_t plan_packed_bytes(enum dtype t, uint64_t n, uint64_t k);

/* One routed expert of a MoE layer, packed; the same for all experts of a model. */
uint64_t plan_expert_bytes(const struct model_file *f, enum quantize q, uint32_t layer);
/* The experts of a set. */
uint64_t plan_experts_bytes(const struct model_file *f, enum quantize q,
                            const struct expert_set *held);

/* What the coordinator holds, without cache and scratch. Bytes. */
struct plan_coordinator {
    uint64_t embedding; /* looked up in the mapped file, in its own type */
    uint64_t attention; /* q, k, v, o packed */
    uint64_t dense;     /* dense layers packed */
    uint64_t router;    /* packed as F32: it reads the unrounded row */
    uint64_t head;      /* packed; a tied head is packed besides the embedding */
    uint64_t vectors;   /* norms and biases as F32 */
    uint64_t total;
};
struct plan_coordinator plan_coordinator(const struct model_file *f, enum quantize q);

/* Keys and values of one token in all layers. */
uint64_t plan_kv_bytes_per_token(const struct model_file *f, enum quantize q);

/* Parameters, counted from the tensors the family needs (a tied head counts once). */
struct plan_params {
    uint64_t total;
    uint64_t active;  /* per token: all but the experts that are not chosen */
    uint64_t experts; /* routed, in total */
};
struct plan_params plan_params(const struct model_file *f);

#endif
