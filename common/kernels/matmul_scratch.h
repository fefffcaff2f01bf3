/* matmul_scratch.h - inside common/kernels: what a product keeps in its scratch. Pure, any thread.
 *
 *   ROW_BF16   the rows as f32 [M, K]
 *   ROW_Q8     a word for every 32 values of a row, or two (Q6_K: for every 16): see block_sums
 * each to a line, and behind them two unpacked panels of up to UNPACK_K of K:
 *   floats     K lines of 16 f32
 *   blocks     a byte for each code as in Q8_0 panels, then for every 32 of K `unpacked_factors` lines of 16 f32:
 *              the scale; scale, minimum (negative for Q4_K, Q5_K); or two subscales and the scale (Q6_K) */
#ifndef MOESAIC_KERNELS_MATMUL_SCRATCH_H
#define MOESAIC_KERNELS_MATMUL_SCRATCH_H

#include "common/kernels/kernels.h"

/* Of K that are unpacked at a time: two panels of it stay in the second cache beside the rows. */
#define UNPACK_K 2048u

uint32_t unpacked_factors(enum dtype t);
size_t unpacked_panel_bytes(enum dtype t, uint32_t k);

/* What stands ahead of the unpacked panels. */
size_t matmul_rows_bytes(const struct packed *w, uint32_t m);

#endif
