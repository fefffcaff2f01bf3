/* weights.h - which tensors a model has: names and shapes by role. Pure, any thread. */
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

/* "attention q", for messages and tables; static. */
const char *weight_role_name(enum weight_role role);

/* Shape of a role's tensor, outermost first; *n_dims is 1 or 2. False if this model (or this layer of it) has no
 * such tensor; a tied head has no W_HEAD of its own. `layer` is ignored for SCOPE_MODEL. */
bool weight_shape(const struct hparams *hp, enum weight_role role, uint32_t layer, uint32_t *n_dims,
                  uint64_t dims[2]);

/* The tensor's name in the files of a family. */
void weight_name(enum family family, enum weight_role role, uint32_t layer, uint32_t expert,
                 char out[WEIGHT_NAME_MAX]);

#endif
