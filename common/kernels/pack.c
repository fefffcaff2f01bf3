/* Packing: row-major matrices of a file become panels of 16 output features, interleaved along K so that one
 * vector register holds one step of K for 16 outputs. Byte by byte:
 *
 *   F32    line k = 16 f32
 *   BF16   line = 16 x { bf16 at k, bf16 at k + 1 }, k even
 *   Q8_0   per 32 of K a block of 8 lines: byte 64g + 4j + i = weight[16p + j][32b + 4g + i] + 128;
 *          after all blocks, K/32 rows of 16 x f16 scales
 */
#include "common/base/check.h"
#include "common/kernels/kernels.h"

#define BLOCK          32u
#define LINE_BYTES     64u
#define Q8_LINES       8u
#define Q8_FILE_BYTES  34u
#define Q8_PANEL_BYTES ((size_t)Q8_LINES * LINE_BYTES) /* quants of one block of a panel */
#define Q8_SCALE_BYTES (PANEL * 2u)

size_t row_data_bytes(enum row_format f, uint32_t k)
{
    switch (f) {
    case ROW_F32:
        return (size_t)k * 4;
    case ROW_BF16:
        return (size_t)k * 2;
    case ROW_Q8:
        return k;
    }
    return 0;
}

size_t row_scale_bytes(enum row_format f, uint32_t k)
{
    return f == ROW_Q8 ? (size_t)(k / BLOCK) * 4 : 0;
}

bool packed_shape(enum pack_format f, enum row_format input, uint32_t n, uint32_t k,
                  struct packed *out)
{
    if (n == 0 || k == 0 || n > UINT32_MAX - 2 * PANEL) return false;
    size_t bytes;
    switch (f) {
    case PACK_F32:
        if (input != ROW_F32 && input != ROW_BF16) return false;
        bytes = (size_t)k * LINE_BYTES;
        break;
    case PACK_BF16:
        if (input != ROW_BF16 || k % 2 != 0) return false;
        bytes = (size_t)k / 2 * LINE_BYTES;
        break;
    case PACK_Q8_0:
        if (input != ROW_Q8 || k % BLOCK != 0) return false;
        bytes = (size_t)(k / BLOCK) * (Q8_PANEL_BYTES + Q8_SCALE_BYTES);
        break;
    default:
        return false;
    }
    *out = (struct packed){
        .format = f,
        .input = input,
        .n = n,
        .k = k,
        .panels = (n + 2 * PANEL - 1) / (2 * PANEL) * 2,
        .panel_bytes = (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES,
    };
    return out->panel_bytes <= SIZE_MAX / out->panels;
}

size_t packed_bytes(const struct packed *w)
{
    return (size_t)w->panels * w->panel_bytes;
}

/* ggml's reference quantiser. It rounds half away from zero, unlike the quantiser of input rows, and multiplies
 * by the inverse of the f32 scale, not of the stored f16 one. NaN and infinities, which ggml leaves
 * undefined, become 0 and the end of the range under a scale that is not finite. */
static void q8_quantize(const float x[BLOCK], uint16_t *scale, int8_t q[BLOCK])
{
    float amax = 0.0f;
    bool finite = true;
    for (uint32_t i = 0; i < BLOCK; i++) {
        float a = f32_from_bits(f32_bits(x[i]) & 0x7fffffffu);
        if (f32_bits(a) >= 0x7f800000u) finite = false;
        if (a > amax) amax = a;
    }
    float d = amax / 127.0f;
    float id = d > 0.0f ? 1.0f / d : 0.0f;
    *scale = finite ? f16_from_f32(d) : (uint16_t)0x7e00u;
    for (uint32_t i = 0; i < BLOCK; i++) {
        float v = x[i] * id;
        if (v > 127.0f) v = 127.0f;
        if (v < -127.0f) v = -127.0f;
        int32_t whole = v == v ? (int32_t)v : 0;
        float rest = v - (float)whole; /* exact */
        if (rest >= 0.5f) whole++;
        if (rest <= -0.5f) whole--;
        q[i] = (int8_t)whole;
    }
}

void q8_0_quantize_block(const float *x, uint8_t *out)
{
    uint16_t scale;
    int8_t q[BLOCK];
    q8_quantize(x, &scale, q);
    memcpy(out, &scale, sizeof scale);
    memcpy(out + sizeof scale, q, sizeof q);
}

/* Elements [k, k + count) of feature j of a panel. */
static void put_f32(uint8_t *panel, uint32_t j, uint32_t k, uint32_t count, enum dtype t,
                    const uint8_t *src)
{
    float x[BLOCK];
    dtype_to_f32(t, src, count, x);
    for (uint32_t i = 0; i < count; i++)
        memcpy(panel + (size_t)(k + i) * LINE_BYTES + 4 * j, &x[i], sizeof x[i]);
}

static void put_bf16(uint8_t *panel, uint32_t j, uint32_t k, uint32_t count, const uint8_t *src)
{
    for (uint32_t i = 0; i < count; i += 2)
        memcpy(panel + (size_t)(k + i) / 2 * LINE_BYTES + 4 * j, src + 2 * i, 4);
}

static void put_q8(uint8_t *panel, uint32_t j, uint32_t k, uint32_t panel_k, enum dtype t,
                   const uint8_t *src)
{
    uint8_t block[Q8_FILE_BYTES];
    if (t == DTYPE_Q8_0) {
        memcpy(block, src, sizeof block);
    } else {
        float x[BLOCK];
        dtype_to_f32(t, src, BLOCK, x);
        q8_0_quantize_block(x, block);
    }
    uint8_t *quants = panel + (size_t)(k / BLOCK) * Q8_PANEL_BYTES;
    uint8_t *scales =
        panel + (size_t)(panel_k / BLOCK) * Q8_PANEL_BYTES + (size_t)(k / BLOCK) * Q8_SCALE_BYTES;
    memcpy(scales + 2 * j, block, 2);
    for (uint32_t i = 0; i < BLOCK; i++)
        quants[i / 4 * LINE_BYTES + 4 * j + i % 4] = block[2 + i] ^ 0x80u;
}

void pack_features(const struct packed *w, uint32_t first, uint32_t count, enum dtype t,
                   const void *src)
{
    assert(first <= w->n && count <= w->n - first);
    assert(w->format != PACK_BF16 || t == DTYPE_BF16);
    assert(w->format != PACK_F32 || t != DTYPE_Q8_0);
    const size_t row_bytes = dtype_bytes(t, w->k);
    const uint8_t *bytes = src;

    /* Panel by panel, 32 of K at a time: the 16 rows are read as 16 streams and the 2 KiB being written stay
     * in the nearest cache. */
    for (uint32_t feature = first; feature < first + count;) {
        uint32_t j0 = feature % PANEL;
        uint32_t here = PANEL - j0;
        if (here > first + count - feature) here = first + count - feature;
        uint8_t *panel = w->data + (size_t)(feature / PANEL) * w->panel_bytes;
        for (uint32_t k = 0; k < w->k; k += BLOCK) {
            uint32_t span = w->k - k < BLOCK ? w->k - k : BLOCK;
            const uint8_t *column =
                bytes + (size_t)(feature - first) * row_bytes + dtype_bytes(t, k);
            for (uint32_t j = j0; j < j0 + here; j++, column += row_bytes) {
                if (w->format == PACK_F32) put_f32(panel, j, k, span, t, column);
                if (w->format == PACK_BF16) put_bf16(panel, j, k, span, column);
                if (w->format == PACK_Q8_0) put_q8(panel, j, k, w->k, t, column);
            }
        }
        feature += here;
    }
}

void packed_clear_padding(const struct packed *w)
{
    uint8_t zero[BLOCK * 4] = {0}; /* 32 zeros of any unquantised type */
    enum dtype t = w->format == PACK_BF16 ? DTYPE_BF16 : DTYPE_F32;
    for (uint32_t feature = w->n; feature < w->panels * PANEL; feature++) {
        uint8_t *panel = w->data + (size_t)(feature / PANEL) * w->panel_bytes;
        for (uint32_t k = 0; k < w->k; k += BLOCK) {
            uint32_t span = w->k - k < BLOCK ? w->k - k : BLOCK;
            if (w->format == PACK_F32) put_f32(panel, feature % PANEL, k, span, t, zero);
            if (w->format == PACK_BF16) put_bf16(panel, feature % PANEL, k, span, zero);
            if (w->format == PACK_Q8_0) put_q8(panel, feature % PANEL, k, w->k, t, zero);
        }
    }
    if (w->format != PACK_Q8_0) return;
    size_t used = (size_t)(w->k / BLOCK) * (Q8_PANEL_BYTES + Q8_SCALE_BYTES);
    for (uint32_t p = 0; p < w->panels; p++)
        memset(w->data + p * w->panel_bytes + used, 0, w->panel_bytes - used);
}

size_t matmul_scratch_bytes(const struct packed *w, uint32_t m)
{
    /* bf16: room for the rows as f32 and, if the weights are bf16 too, one panel as f32. Q8: a whole number per
     * block of a row. */
    if (w->input == ROW_F32) return 0;
    const size_t words = (size_t)m * (w->input == ROW_Q8 ? w->k / 32 : w->k);
    return (words * 4 + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES +
           (w->format == PACK_BF16 ? (size_t)w->k * LINE_BYTES : 0);
}
