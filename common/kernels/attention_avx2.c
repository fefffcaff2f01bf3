/* Attention of rows over a block of 64 keys, eight numbers at a time. See attention_inline.h. */
#if defined(__x86_64__)
#include "common/kernels/avx2_inline.h"

#define LANES           8u
#define MOST_ROWS       4
#define EACH_TILE(make) make(4, 1, 2) make(2, 2, 4) make(1, 4, 8)

typedef __m256 vec;
#define v_zero      _mm256_setzero_ps
#define v_set1      _mm256_set1_ps
#define v_load      _mm256_loadu_ps
#define v_load_bf16 load_bf16_avx2
#define v_store     _mm256_storeu_ps
#define v_fma       _mm256_fmadd_ps
#define v_add       _mm256_add_ps
#define v_sub       _mm256_sub_ps
#define v_mul       _mm256_mul_ps
#define v_div       _mm256_div_ps
#define v_max       _mm256_max_ps
#define v_exp       exp_avx2
#define v_tanh      tanh_avx2
#define v_largest   max8_avx2
#define v_transpose transpose8

/* Rows become columns. */
ALWAYS_INLINE void transpose8(__m256 x[8])
{
    __m256 y[8];
    UNROLL
    for (int i = 0; i < 8; i += 2) { /* pairs of rows, interleaved */
        y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 8; i += 4) { /* four rows: columns 0 4, 1 5, 2 6, 3 7 */
        x[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44);
        x[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xee);
        x[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44);
        x[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xee);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        y[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
        y[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
    }
    UNROLL
    for (int i = 0; i < 8; i++)
        x[i] = y[i];
}

#include "common/kernels/attention_inline.h"

void attention_block_avx2(const struct attention_shape *shape, struct attention_row *rows,
                          uint32_t n, const void *keys, const void *values)
{
    attention_block_inline(shape, rows, n, keys, values);
}
#else
typedef int not_for_this_machine;
#endif
