/* Attention of rows over a block of 64 keys, sixteen numbers at a time. See attention_inline.h. */
#if defined(__x86_64__)
#include "common/kernels/avx512_inline.h"

#define LANES           16u
#define MOST_ROWS       8
#define EACH_TILE(make) make(8, 2, 2) make(4, 4, 4) make(2, 4, 8) make(1, 4, 8)

typedef __m512 vec;
#define v_zero      _mm512_setzero_ps
#define v_set1      _mm512_set1_ps
#define v_load      _mm512_loadu_ps
#define v_load_bf16 load_bf16_avx512
#define v_store     _mm512_storeu_ps
#define v_fma       _mm512_fmadd_ps
#define v_add       _mm512_add_ps
#define v_sub       _mm512_sub_ps
#define v_mul       _mm512_mul_ps
#define v_div       _mm512_div_ps
#define v_max       _mm512_max_ps
#define v_exp       exp_avx512
#define v_tanh      tanh_avx512
#define v_largest   largest16
#define v_transpose transpose16

/* Which zero of two wins is not defined. */
ALWAYS_INLINE float largest16(__m512 v)
{
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    return max8_avx2(_mm256_max_ps(_mm512_castps512_ps256(v), high));
}

/* Rows become columns. */
ALWAYS_INLINE void transpose16(__m512 x[16])
{
    __m512 y[16];
    UNROLL
    for (int i = 0; i < 16; i += 2) { /* pairs of rows, interleaved */
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4) { /* four rows: columns 0 4 8 12, 1 5 9 13, ... */
        x[i] = _mm512_shuffle_ps(y[i], y[i + 2], 0x44);
        x[i + 1] = _mm512_shuffle_ps(y[i], y[i + 2], 0xee);
        x[i + 2] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0x44);
        x[i + 3] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0xee);
    }
    UNROLL
    for (int i = 0; i < 4; i++) { /* eight rows: columns i and i + 8, i + 4 and i + 12 */
        y[i] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 8; i++) {
        x[i] = _mm512_shuffle_f32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_f32x4(y[i], y[i + 8], 0xdd);
    }
}

#include "common/kernels/attention_inline.h"

void attention_block_avx512(const struct attention_shape *shape, struct attention_row *rows,
                            uint32_t n, const void *keys, const void *values)
{
    attention_block_inline(shape, rows, n, keys, values);
}
#else
typedef int not_for_this_machine;
#endif
