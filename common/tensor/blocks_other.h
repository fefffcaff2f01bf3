/* blocks_other.h - inside common/tensor: block formats of GGUF that are read, and not computed with. Pure, any thread.
 *
 * Every value is a product of the block's scale, a small sub-scale and a code, which is exact in f32, and in Q2_K one
 * subtraction of two such. */
#ifndef MOESAIC_TENSOR_BLOCKS_OTHER_H
#define MOESAIC_TENSOR_BLOCKS_OTHER_H

#include <stddef.h>

#include "common/tensor/dtype.h"

/* t from DTYPE_N_NATIVE on; n a multiple of its block; src needs no alignment. */
void blocks_other_to_f32(enum dtype t, const void *src, size_t n, float *dst);

#endif
