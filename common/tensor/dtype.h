/* dtype.h - number formats of files and wire. Pure, any thread. */
#ifndef MOESAIC_TENSOR_DTYPE_H
#define MOESAIC_TENSOR_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0, DTYPE_N };

const char *dtype_name(enum dtype t); /* "F32", "BF16", ... */
uint32_t dtype_block(enum dtype t);   /* elements per block: 1, or 32 for Q8_0 */
size_t dtype_block_bytes(enum dtype t);
/* Bytes of n elements; n must be a multiple of the block. */
size_t dtype_bytes(enum dtype t, size_t n);

static inline float f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float bf16_to_f32(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

/* Nearest even; NaN stays NaN (quiet). */
static inline uint16_t bf16_from_f32(float f)
{
    uint32_t u = f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

float f16_to_f32(uint16_t h);   /* exact */
uint16_t f16_from_f32(float f); /* nearest even, subnormals kept, overflow to infinity */

/* Decode n elements to f32, exactly. n a multiple of the block; src needs no alignment. */
void dtype_to_f32(enum dtype t, const void *src, size_t n, float *dst);

#endif
