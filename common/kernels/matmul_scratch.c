#include "common/kernels/matmul_scratch.h"

#include "common/tensor/blocks.h"

uint32_t unpacked_factors(enum dtype t)
{
    if (t == DTYPE_Q6_K) return 3;
    return codes_have_min(t) ? 2 : 1;
}

size_t unpacked_panel_bytes(enum dtype t, uint32_t k)
{
    if (dtype_block(t) == 1) return (size_t)k * PANEL_LINE;
    return (size_t)(k / QUANTS) * (QUANTS * PANEL + unpacked_factors(t) * PANEL_LINE);
}

size_t matmul_rows_bytes(const struct packed *w, uint32_t m)
{
    size_t words = w->input == ROW_F32 ? 0 : (size_t)m * w->k; /* f32 rows are taken as they are */
    if (w->input == ROW_Q8) words = words / QUANTS * (w->format == DTYPE_Q6_K ? 2 : 1);
    return (words * 4 + PANEL_LINE - 1) / PANEL_LINE * PANEL_LINE;
}

size_t matmul_scratch_bytes(const struct packed *w, uint32_t m)
{
    const size_t rows = matmul_rows_bytes(w, m);
    if (w->format == DTYPE_F32 || w->format == DTYPE_Q8_0) return rows; /* never unpacked */
    return rows + 2 * unpacked_panel_bytes(w->format, w->k < UNPACK_K ? w->k : UNPACK_K);
}
