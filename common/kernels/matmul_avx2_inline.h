/* matmul_avx2_inline.h - inside the matmul_*avx2.c files only: the ends of a tile's chains. acc[row][panel][half]. */
#ifndef MOESAIC_KERNELS_MATMUL_AVX2_INLINE_H
#define MOESAIC_KERNELS_MATMUL_AVX2_INLINE_H

#include "common/kernels/matmul_inline.h"

#define FEW_ROWS 3u /* up to here a tile takes two panels (more chains under way) */

ALWAYS_INLINE void start_tile(const struct tile *t, const int R, const int P, __m256 acc[][2][2])
{
    UNROLL
    for (int i = 0; i < R * P * 2; i++)
        acc[i / (2 * P)][i / 2 % P][i % 2] = _mm256_setzero_ps();
    if (!t->resume) return;
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2 * P; i++) {
            const uint32_t first = 8 * (uint32_t)i;
            if (first >= t->features) continue;
            const uint32_t lanes = t->features - first;
            acc[r][i / 2][i % 2] = _mm256_maskload_ps(t->y + (size_t)r * t->ldy + first,
                                                      first_lanes_avx2(lanes < 8 ? lanes : 8));
        }
}

ALWAYS_INLINE void store_tile(const struct tile *t, const int R, const int P, __m256 acc[][2][2])
{
    const bool whole = t->features >= (uint32_t)P * PANEL;
    UNROLL
    for (int r = 0; r < R; r++) {
        UNROLL
        for (int i = 0; i < 2 * P; i++) {
            uint32_t first = 8 * (uint32_t)i;
            float *y = t->y + (size_t)r * t->ldy + first;
            if (whole) {
                _mm256_storeu_ps(y, acc[r][i / 2][i % 2]);
            } else if (first < t->features) {
                uint32_t lanes = t->features - first;
                _mm256_maskstore_ps(y, first_lanes_avx2(lanes < 8 ? lanes : 8),
                                    acc[r][i / 2][i % 2]);
            }
        }
    }
}

void matmul_codes_avx2(const struct packed *w, uint32_t panel0, uint32_t panel1,
                       const struct rows *x, float *y, size_t ldy, uint8_t *scratch);

#endif
