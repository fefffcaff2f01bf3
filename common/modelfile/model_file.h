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

/* A tensor of a file, or the part of one that is a role's matrix or vector. */
struct tensor {
    const char *name;
    enum dtype
        dtype; /* DTYPE_N: a format that is not read; never for a tensor that the family needs */
    uint32_t n_dims;
    uint64_t dims[TENSOR_MAX_DIMS]; /* outermost first, as in safetensors: [out, in] */
    const uint8_t *data;            /* mapped; no alignment promised */
    uint64_t bytes;                 /* from the first to the last that belongs to it */
    uint32_t file;                  /* index into model_file_path() */
    uint64_t file_off;              /* from the start of the file */

    /* From a row to the next. col_stride 0: a row's bytes stand together, as dtype_bytes() has them; else that from an
     * element to the next. Of a vector the row is the whole. */
    uint64_t row_stride, col_stride;
    /* F8_E4M3: scales are f32 [.., ..] for F8_BLOCK rows and columns each, of which the first belong to element
     * (scale_row0, 0). MXFP4 from blocks that have theirs apart: a byte per block. NULL: none apart. */
    const uint8_t *scales;
    uint64_t scales_stride; /* bytes from a row of scales to the next */
    uint64_t scale_row0;
};

/* Row `row` of a matrix (row 0 of a vector) as dtype.h has it: in the file, or put together in `tmp`, which has
 * dtype_bytes(t->dtype, columns) bytes. */
const void *tensor_row(const struct tensor *t, uint64_t row, void *tmp);
/* All of a vector, or of a matrix whose rows stand together, as f32. Its format must have blocks of 1. */
void tensor_vector_f32(const struct tensor *t, float *out);
uint64_t tensor_columns(const struct tensor *t); /* of a row: the last dimension */
uint64_t tensor_n_elements(const struct tensor *t);

/* What a tensor is for (weight_roles.def). */
enum weight_role {
#define ROLE(name, text, scope, class) W_##name,
#include "common/modelfile/weight_roles.def"
#undef ROLE
    W_N_ROLES
};

struct model_file;
struct gguf;

/* `path`: a Hugging Face folder (config.json; model.safetensors, or shards with model.safetensors.index.json), a
 * folder of its download cache ("models--org--name"), whose refs/main is followed; a GGUF file, any part of a split one, or
 * a folder with one.
 * Checks at open that every tensor the family needs is there with the right shape and a known dtype (the name,
 * both shapes in the error), that offsets lie within the files and do not overlap, that shards exist (named).
 * INVALID (not a model's path), NOT_FOUND, CORRUPT, UNSUPPORTED, IO, EXHAUSTED; texts begin with the path. */
enum err_code model_file_open(const char *path, struct model_file **out, struct err *why);
/* The same for a machine that has only some of the shards (config.json and the index must be there): a tensor in a
 * shard that is not here is no fault, and model_file_find answers NULL for it. A split GGUF file must be here whole. */
enum err_code model_file_open_part(const char *path, struct model_file **out, struct err *why);
void model_file_close(struct model_file *f);

const struct hparams *model_file_hparams(const struct model_file *f);
const char *
model_file_dir(const struct model_file *f); /* where config.json is, or the GGUF file's path */
const struct gguf *
model_file_gguf(const struct model_file *f); /* a GGUF file's metadata, else NULL */
/* The tensor of a role; NULL for roles that the family or its hparams do not have and, in a file opened in part, for
 * what is not here.
 * layer and expert are ignored where they do not apply. A tied head gives the embedding for W_HEAD. */
const struct tensor *model_file_find(const struct model_file *f, enum weight_role role,
                                     uint32_t layer, uint32_t expert);
/* The weight files, in order of their names. */
uint32_t model_file_n_paths(const struct model_file *f);
const char *model_file_path(const struct model_file *f, uint32_t file);
const uint64_t *model_file_index_hash(
    const struct model_file *f); /* [2] xxh3-128 of the index; NULL for a single file */
uint64_t model_file_size(const struct model_file *f, uint32_t file); /* bytes, header included */
const char *model_file_index_path(const struct model_file *f); /* NULL if there is one file only */

/* Tell the kernel that these bytes are not needed any more (source pages are dropped once packed). */
void model_file_drop(const struct model_file *f, const struct tensor *t);

/* Iterate all tensors of the files, by name order; for inspect. */
uint32_t model_file_n_tensors(const struct model_file *f);
const struct tensor *model_file_tensor(const struct model_file *f, uint32_t i);
const char *model_file_dtype_text(const struct model_file *f,
                                  uint32_t i); /* as in the file: "BF16", "F8_E4M3" */

/* 16 bytes as 32 hex digits + NUL: xxh3-128 over a canonical text of what decides the bits of an answer: the numbers
 * of hparams (without special tokens, context length and sampling defaults, which are the coordinator's alone),
 * `quantize` ("none", "q8_0"), NUMERICS_VERSION and WIRE_PROFILE; of a single file the tensor table (names, dtypes,
 * shapes) and its size; of shards the bytes of the index and the dtype of the experts, which a machine that has only some
 * of the shards knows too. */
#define NUMERICS_VERSION        2u
#define WIRE_PROFILE            1u
#define MODEL_FILE_DIGEST_CHARS 33u
void model_file_digest(const struct model_file *f, const char *quantize,
                       char out[MODEL_FILE_DIGEST_CHARS]);

/* xxh3-64 over the bytes of an expert's tensors as stored: gate, up, down. Reads them. `layer` must be MoE. */
uint64_t model_file_expert_hash(const struct model_file *f, uint32_t layer, uint32_t expert);

#endif
