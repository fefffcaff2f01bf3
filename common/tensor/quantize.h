/* quantize.h - f32 to the formats that weights are made into. Pure, any thread. */
#ifndef MOESAIC_TENSOR_QUANTIZE_H
#define MOESAIC_TENSOR_QUANTIZE_H

#include <stdbool.h>

#include "common/tensor/dtype.h"

/* F32, F16, BF16 (nearest even), Q8_0, Q4_0, MXFP4. */
bool dtype_can_encode(enum dtype t);

/* A row of n numbers, a multiple of the block, as dtype_bytes(t, n) bytes. The block formats get the bytes of ggml's
 * reference quantizers. What those leave undefined: a block with NaN or infinity gets a scale that is NaN (Q8_0, Q4_0) or
 * the largest one, under which the largest numbers are infinite (MXFP4, which has no NaN). */
void dtype_from_f32(enum dtype t, const float *x, size_t n, void *out);

#endif
