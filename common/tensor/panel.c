#include "common/tensor/panel.h"

#include <stdbool.h>

static bool is_half(enum dtype t)
{
    return t == DTYPE_BF16 || t == DTYPE_F16;
}

enum dtype panel_dtype(enum dtype t, uint64_t k)
{
    assert(t < DTYPE_N_NATIVE);
    return is_half(t) && k % 2 != 0 ? DTYPE_F32 : t;
}

uint64_t panel_bytes(enum dtype t, uint64_t k)
{
    assert(t < DTYPE_N_NATIVE);
    if (t == DTYPE_F32) return k * 4 * PANEL;
    if (is_half(t)) return k % 2 == 0 ? k * 2 * PANEL : 0;
    if (t == DTYPE_F8_E4M3)
        return panel_f8_scales(k) + (k + F8_BLOCK - 1) / F8_BLOCK * PANEL * sizeof(float);
    const struct panel_layout l = panel_layout(t);
    if (k % l.group != 0) return 0;
    const uint64_t bytes = k / QUANTS * l.quants + k / l.group * l.group_bytes;
    return (bytes + PANEL_LINE - 1) / PANEL_LINE * PANEL_LINE;
}
