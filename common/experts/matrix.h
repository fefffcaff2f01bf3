/* matrix.h - from a tensor of a file to a packed matrix. Pure but for the packing, any thread. */
#ifndef MOESAIC_EXPERTS_MATRIX_H
#define MOESAIC_EXPERTS_MATRIX_H

#include "common/base/err.h"
#include "common/kernels/kernels.h"
#include "common/modelfile/plan.h"
#include "common/sys/workers.h"

/* "none" (also NULL) or "q8_0"; INVALID otherwise. */
enum err_code matrix_quantize_parse(const char *quantize, enum quantize *out, struct err *why);

/* Geometry of the product matrix `t` [N, K]: all of *out but data. The format is plan_dtype()'s; the router is
 * upcast to F32 and takes F32 rows. UNSUPPORTED names the tensor. */
enum err_code matrix_shape(const struct tensor *t, enum weight_role role, enum quantize quantize,
                           struct packed *out, struct err *why);

/* Pack all of `t` into w->data, panels in parallel; then its source pages are dropped. */
void matrix_pack(const struct packed *w, const struct model_file *file, const struct tensor *t,
                 struct workers *workers);

#endif
