/* matmul_avx512_inline.h - inside the matmul_*avx512.c files only: the ends of a tile's chains. */
#ifndef MOESAIC_KERNELS_MATMUL_AVX512_INLINE_H
#define MOESAIC_KERNELS_MATMUL_AVX512_INLINE_H

#include "common/kernels/matmul_inline.h"

/* Of panel p: the features that exist. */
ALWAYS_INLINE __mmask16 tile_lanes(const struct tile *t, const int p)
{
    const uint32_t first = PANEL * (uint32_t)p;
    if (first >= t->features) return 0;
    const uint32_t lanes = t->features - first < PANEL ? t->features - first : PANEL;
    return (__mmask16)(0xffffu >> (PANEL - lanes));
}

ALWAYS_INLINE void start_tile(const struct tile *t, const int R, const int P, __m512 acc[][2])
{
    UNROLL
    for (int i = 0; i < R * P; i++)
        acc[i / P][i % P] = _mm512_setzero_ps();
    if (!t->resume) return;
    UNROLL
    for (int i = 0; i < R * P; i++)
        acc[i / P][i % P] = _mm512_maskz_loadu_ps(
            tile_lanes(t, i % P), t->y + (size_t)(i / P) * t->ldy + PANEL * (size_t)(i % P));
}

ALWAYS_INLINE void store_tile(const struct tile *t, const int R, const int P, __m512 acc[][2])
{
    UNROLL
    for (int i = 0; i < R * P; i++)
        _mm512_mask_storeu_ps(t->y + (size_t)(i / P) * t->ldy + PANEL * (size_t)(i % P),
                              tile_lanes(t, i % P), acc[i / P][i % P]);
}

void matmul_codes_avx512(const struct packed *w, uint32_t panel0, uint32_t panel1,
                         const struct rows *x, float *y, size_t ldy, uint8_t *scratch);

#endif
