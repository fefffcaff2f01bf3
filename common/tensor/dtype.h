/* dtype.h - number formats of files and wire. Pure, any thread. */
#ifndef MOESAIC_TENSOR_DTYPE_H
#define MOESAIC_TENSOR_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The formats up to DTYPE_N_NATIVE are computed with as they are; the others are read, and packed as a native one.
 * A row of blocks is as GGUF has it. F8_E4M3 is that of checkpoints whose matrices have scales in blocks of 128 x 128: a row
 * of n codes, then f32 scales, one for each F8_BLOCK codes begun, so that a row
 * stands by itself. */
enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F8_E4M3,
    DTYPE_Q8_0,
    DTYPE_Q4_0,
    DTYPE_Q4_1,
    DTYPE_Q5_0,
    DTYPE_Q5_1,
    DTYPE_Q4_K,
    DTYPE_Q5_K,
    DTYPE_Q6_K,
    DTYPE_MXFP4,
    DTYPE_N_NATIVE,
    DTYPE_Q2_K = DTYPE_N_NATIVE,
    DTYPE_Q3_K,
    DTYPE_IQ1_S,
    DTYPE_IQ1_M,
    DTYPE_IQ2_XXS,
    DTYPE_IQ2_XS,
    DTYPE_IQ2_S,
    DTYPE_IQ3_XXS,
    DTYPE_IQ3_S,
    DTYPE_IQ4_NL,
    DTYPE_IQ4_XS,
    DTYPE_TQ1_0,
    DTYPE_TQ2_0,
    DTYPE_NVFP4,
    DTYPE_N
};

#define F8_BLOCK 128u /* codes that share a scale, along a row and across rows */

const char *dtype_name(enum dtype t); /* "F32", "BF16", ... */
uint32_t dtype_block(enum dtype t);   /* elements per block; 1 for single numbers and for F8_E4M3 */
size_t dtype_block_bytes(enum dtype t);
/* Bytes of a row of n elements, its scales included; n must be a multiple of the block. */
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

/* Decode a row of n elements to f32; exact but for F8_E4M3, whose product with the scale is rounded once. n a multiple of the
 * block; src needs no alignment. */
void dtype_to_f32(enum dtype t, const void *src, size_t n, float *dst);

/* The native format that a row of t is packed as at load: t itself, or one that has the same numbers for every block there
 * can be, whatever its scale, or BF16. */
enum dtype dtype_repacked(enum dtype t);
/* Whether that keeps all numbers; where not, they are rounded to BF16. */
bool dtype_repack_is_exact(enum dtype t);
/* A row of n elements of `from` as one of dtype_repacked(from), which has dtype_bytes(dtype_repacked(from), n) bytes. No
 * alignment needed; must not overlap. */
void dtype_repack_row(enum dtype from, const void *src, size_t n, void *dst);

#endif
