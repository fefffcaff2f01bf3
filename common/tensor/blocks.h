/* blocks.h - the native block formats taken apart, 32 elements at a time. Pure, any thread. */
#ifndef MOESAIC_TENSOR_BLOCKS_H
#define MOESAIC_TENSOR_BLOCKS_H

#include <stdbool.h>

#include "common/tensor/dtype.h"

/* 32 neighbors of a row. Element i is
 *   Q8_0 Q4_0 Q5_0   (code - offset) * f32(d)            offset 128, 8, 16
 *   Q4_1 Q5_1        code * f32(d) + f32(m)
 *   MXFP4            (code - 12) * 2^(d - 128)           code - 12: twice the E2M1 value; d: the E8M0 byte
 *   Q4_K Q5_K        code * (f32(d) * scale[0]) - f32(m) * min
 *   Q6_K             (code - 32) * (f32(d) * scale[i / 16])
 * with d and m as f16 codes. */
struct codes {
    uint8_t code[32];
    uint16_t d, m;
    int16_t scale[2], min; /* Q4_K, Q5_K: 0..63; Q6_K: -128..127 */
};

uint32_t codes_offset(enum dtype t);
bool codes_have_min(enum dtype t); /* Q4_1 Q5_1 Q4_K Q5_K */

/* Elements [32 part, 32 part + 32) of a block of t, which needs no alignment. */
void codes_get(enum dtype t, const uint8_t *block, uint32_t part, struct codes *out);

/* 2^(e - 128): what a code of MXFP4 counts in. Byte 255 is no NaN here but 2^127, as in ggml. */
float mxfp4_unit(uint8_t e);

/* Value of a code of F8_E4M3 ("fn": no infinities, 7f and ff are NaN). */
float f8_e4m3_to_f32(uint8_t code);

/* dtype_to_f32 for F8_E4M3 and the native block formats. */
void f8_row_to_f32(const uint8_t *src, size_t n, float *dst);
void blocks_to_f32(enum dtype t, const uint8_t *src, size_t n, float *dst);

#endif
