/* matrix.h - from a tensor of a file to a packed matrix. Pure but for the packing, any thread. */
#ifndef MOESAIC_EXPERTS_MATRIX_H
#define MOESAIC_EXPERTS_MATRIX_H

#include "common/base/err.h"
#include "common/kernels/kernels.h"
#include "common/modelfile/plan.h"
#include "common/sys/workers.h"

/* "none" (also NULL), "q8_0", ...: plan.h has the list; INVALID otherwise. */
enum err_code matrix_quantize_parse(const char *quantize, enum quantize *out, struct err *why);

/* Geometry of the product matrix `t` [N, K]: all of *out but data. The format is plan_dtype()'s; the router is
 * upcast to F32 and takes F32 rows. UNSUPPORTED names the tensor. */
enum err_code matrix_shape(const struct tensor *t, enum weight_role role, enum quantize quantize,
                           struct packed *out, struct err *why);
/* The same for [n, k] numbers that come from a tensor in another shape, to be packed as `dtype`. */
enum err_code matrix_shape_as(const struct tensor *t, enum weight_role role, enum dtype dtype,
                              uint32_t n, uint32_t k, struct packed *out, struct err *why);

/* Pack rows [first_row, first_row + w->n) of `t`, taken as a matrix, into w->data, panels in parallel; the pages of the file
 * that hold them are dropped. EXHAUSTED: no memory for rows that do not stand in the file as they are packed. */
enum err_code matrix_pack(const struct packed *w, const struct model_file *file,
                          const struct tensor *t, uint64_t first_row, struct workers *workers,
                          struct err *why);

/* The same from f32 values [w->n, w->k], k at most LIMIT_HEAD_DIM, by the calling thread. */
void matrix_pack_f32(const struct packed *w, const float *rows);

#endif
