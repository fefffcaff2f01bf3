/* plan.h - what a model will take in memory, and in which format each matrix is held. Pure over an opened model,
 * any thread. Touches no tensor bytes. */
#ifndef MOESAIC_MODELFILE_PLAN_H
#define MOESAIC_MODELFILE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/modelfile/experts_spec.h"
#include "common/modelfile/model_file.h"

enum quantize { QUANTIZE_NONE, QUANTIZE_Q8_0, QUANTIZE_Q4_0, QUANTIZE_MXFP4, QUANTIZE_N };

const char *quantize_name(enum quantize q); /* "none", "q8_0": as the digest takes it */
bool quantize_find(const char *name, enum quantize *out); /* false for any other name */
const char *quantize_names(void);                         /* "none, q8_0, q4_0, mxfp4" */

/* THE rule for loaders: the format in which a tensor is packed. Its own, if it is native; else the nearest native one. When
 * asked, matrices in 16 or 32 bits or fp8 whose rows are a multiple of 32 are quantized; router, norms, biases and the
 * embedding look-up never are. A tied head is asked for as W_HEAD and W_EMBED apart. */
enum dtype plan_dtype(enum weight_role role, const struct tensor *t, enum quantize q);

/* What latent attention makes of the expansion of keys, held transposed: per head [kv_rank, nope]; `t` is W_KV_B or
 * W_K_B. Transposed blocks of numbers are no blocks any more: F32. */
enum dtype plan_latent_key_dtype(const struct model_file *f, const struct tensor *t,
                                 enum quantize q);

/* Keys and values are held as F32 when the matrices that make them are, else BF16. */
enum dtype plan_kv_dtype(const struct model_file *f, enum quantize q);

/* Do experts answer in F32: only if all their down matrices are F32; else in BF16. */
bool plan_reply_f32(const struct model_file *f, enum quantize q);

/* Bytes of W [n, k] of type t in panels (tensor/panel.h), as kernels' packed_bytes; 0 for a type that is not computed with, or
 * a k that its panels do not have. */
uint64_t plan_packed_bytes(enum dtype t, uint64_t n, uint64_t k);

/* One routed expert of a MoE layer, packed, its biases included. */
uint64_t plan_expert_bytes(const struct model_file *f, enum quantize q, uint32_t layer);
/* The experts of a set. */
uint64_t plan_experts_bytes(const struct model_file *f, enum quantize q,
                            const struct expert_set *held);

/* What the coordinator holds, without cache and scratch. Bytes. */
struct plan_coordinator {
    uint64_t embedding; /* looked up in the mapped file, in its own type */
    uint64_t attention; /* its matrices packed */
    uint64_t dense;     /* dense layers packed */
    uint64_t shared;    /* shared experts packed */
    uint64_t router;    /* packed as F32: it reads the unrounded row */
    uint64_t head;      /* packed; a tied head is packed besides the embedding */
    uint64_t vectors;   /* norms and biases as F32 */
    uint64_t total;
};
struct plan_coordinator plan_coordinator(const struct model_file *f, enum quantize q);

/* Tensors of a format that is not computed with, all of one kind: what they are packed as. */
struct plan_repack {
    enum dtype from, to;
    uint32_t n_tensors;
    uint64_t file_bytes, memory_bytes;
};
#define PLAN_MAX_REPACKS (DTYPE_N - DTYPE_N_NATIVE)
/* Those of routed experts (all of the model's), or of everything else; answers for how many kinds there are. */
uint32_t plan_repacks(const struct model_file *f, enum quantize q, bool experts,
                      struct plan_repack out[PLAN_MAX_REPACKS]);
/* One line of log for each: what is not computed with as the file has it, and what that costs. */
void plan_log_repacks(const char *who, const struct model_file *f, enum quantize q, bool experts);

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
