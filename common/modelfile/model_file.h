/* model_file.h - an opened model: its numbers, its tensors (mapped, read only), its digest.
 * Immutable after open, any thread. Opening maps files and reads headers; it touches no tensor bytes. */
#ifndef MOESAIC_MODELFILE_MODEL_FILE_H
#define MOESAIC_MODELFILE_MODEL_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/modelfile/hparams.h"
#include "common/tensor/dtype.h"

#define TENSOR_MAX_DIMS 4u

struct tensor {
    const char *name;
    enum dtype dtype;
    uint32_t n_dims;
    uint64_t dims[TENSOR_MAX_DIMS]; /* outermost first, as in safetensors: [out, in] */
    const uint8_t *data;            /* mapped; no alignment promised */
    uint64_t bytes;
    uint32_t file;                  /* index into model_file_path() */
    uint64_t file_off;              /* from the start of the file */
};

/* What a tensor is for; a family's table maps (role, layer, expert) to its name. */
enum weight_role {
    W_EMBED, W_FINAL_NORM, W_HEAD,
    W_ATTN_NORM, W_Q, W_K, W_V, W_O, W_Q_BIAS, W_K_BIAS, W_V_BIAS, W_O_BIAS, W_Q_NORM, W_K_NORM,
    W_FFN_NORM, W_ROUTER, W_DENSE_GATE, W_DENSE_UP, W_DENSE_DOWN,
    W_EXPERT_GATE, W_EXPERT_UP, W_EXPERT_DOWN,
    W_N_ROLES
};

struct model_file;

/* `path`: a Hugging Face folder (config.json; model.safetensors, or shards with model.safetensors.index.json).
 * Checks at open that every tensor the family needs is there with the right shape and a known dtype (the name,
 * both shapes in the error), that offsets lie within the files and do not overlap, that shards exist (named).
 * A .gguf path or folder with only gguf: UNSUPPORTED, "GGUF files are not supported yet". */
enum err_code model_file_open(const char *path, struct model_file **out, struct err *why);
void model_file_close(struct model_file *f);

const struct hparams *model_file_hparams(const struct model_file *f);
const char *model_file_dir(const struct model_file *f);
/* The tensor of a role; never NULL for the roles the family and its hparams have, NULL otherwise.
 * layer and expert are ignored where they do not apply. A tied head gives the embedding for W_HEAD. */
const struct tensor *model_file_find(const struct model_file *f, enum weight_role role, uint32_t layer,
                                     uint32_t expert);
uint32_t model_file_n_paths(const struct model_file *f);
const char *model_file_path(const struct model_file *f, uint32_t file);

/* Tell the kernel that these bytes are not needed any more (source pages are dropped once packed). */
void model_file_drop(const struct model_file *f, const struct tensor *t);

/* Iterate all tensors of the files, by name order; for inspect. */
uint32_t model_file_n_tensors(const struct model_file *f);
const struct tensor *model_file_tensor(const struct model_file *f, uint32_t i);

/* 16 bytes as 32 hex digits + NUL: xxh3-128 over the canonical text of config (the honoured values), tensor table (names,
 * dtypes, shapes), file sizes, `quantize` ("none", "q8_0"), NUMERICS_VERSION and WIRE_PROFILE. */
#define NUMERICS_VERSION 1u
#define WIRE_PROFILE 1u
void model_file_digest(const struct model_file *f, const char *quantize, char out[33]);

#endif
