/* weights.h - which tensors a model has: shapes by role, and where they are in the files. Pure, any thread. */
#ifndef MOESAIC_MODELFILE_WEIGHTS_H
#define MOESAIC_MODELFILE_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/modelfile/hparams.h"
#include "common/modelfile/model_file.h"

#define WEIGHT_NAME_MAX 128u

/* How often a role occurs. */
enum weight_scope { SCOPE_MODEL, SCOPE_LAYER, SCOPE_EXPERT };
enum weight_scope weight_scope(enum weight_role role);

/* What a role is counted as; all but vectors, the embedding and the router can be quantized at load. */
enum weight_class {
    CLASS_EMBEDDING,
    CLASS_HEAD,
    CLASS_ATTENTION,
    CLASS_VECTOR,
    CLASS_ROUTER,
    CLASS_DENSE,
    CLASS_SHARED,
    CLASS_EXPERT,
    CLASS_N
};
enum weight_class weight_class(enum weight_role role);

/* "attention q", for messages and tables; static. */
const char *weight_role_name(enum weight_role role);

/* Shape of a role's matrix or vector, outermost first: [out, in] or [out]; [heads, out, in] of K_B and V_B. False if this
 * model (or this layer of it) has no such tensor; a tied head has no W_HEAD of its own. `layer` is ignored for
 * SCOPE_MODEL. */
bool weight_shape(const struct hparams *hp, enum weight_role role, uint32_t layer, uint32_t *n_dims,
                  uint64_t dims[TENSOR_MAX_DIMS]);

/* Which stack of an encoder-decoder model; layers are counted from the stack's first. */
enum weight_stack { STACK_ANY, STACK_ENCODER, STACK_DECODER };

/* Which output features of a tensor are the role's. */
enum weight_part { PART_ALL, PART_LOW /* the first half */, PART_HIGH, PART_EVEN, PART_ODD };

/* Where a role's numbers are: a tensor, and what of it. */
struct weight_place {
    const char *name; /* "{layer}" and "{expert}" stand for numbers */
    enum weight_role role;
    const char *
        scales; /* name of the scales of MXFP4 blocks, for which `name` is [.., out, in / 32, 16] U8; else NULL */
    bool stacked;    /* the tensor holds all experts: [E, ..] */
    bool transposed; /* [in, out] */
    enum weight_part part;
    enum weight_stack stack;
};

enum weight_files { FILES_HF, FILES_GGUF };

/* The i-th place where a family's files may have a role of a layer; false past the last. The first one that is there counts. */
bool weight_place(const struct hparams *hp, enum weight_files files, enum weight_role role,
                  uint32_t layer, uint32_t i, struct weight_place *out);
/* The number of a layer in the name of a place. */
uint32_t weight_place_layer(const struct hparams *hp, const struct weight_place *place,
                            uint32_t layer);

/* Shape that the tensor of a place must have, from that of the role. */
void weight_place_shape(const struct weight_place *place, uint32_t n_experts, uint32_t *n_dims,
                        uint64_t dims[TENSOR_MAX_DIMS]);

/* `pattern` with its numbers. */
void weight_name(const char *pattern, uint32_t layer, uint32_t expert, char out[WEIGHT_NAME_MAX]);

#endif
