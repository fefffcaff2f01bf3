/* Packing: row-major matrices of a file become panels of 16 output features, interleaved along K so that one
 * vector register holds one step of K for 16 outputs. For feature j of a panel, byte by byte:
 *
 *   F32     line k = 16 f32
 *   BF16    line = 16 x { bf16 at k, bf16 at k + 1 }, k even
 *   F16     half a line per k = 16 f16
 *   F8      a quarter line per k = 16 codes; then, from the next line on, a line of 16 f32 scales per 128 of K. A scale whose
 *           128 codes have a NaN among them is NaN, so that nobody has to look for codes that are none: every output
 *           that reads one is NaN either way.
 *   blocks  per 32 of K the quants (below), K/32 times; then K/32 or K/256 runs of scales (panel.h has the sizes)
 *
 * Quants, all unsigned (codes.code):
 *   Q8_0                    8 lines; byte 64g + 4j + i = the code of k = 4g + i, which is weight + 128
 *   all others              4 lines: byte 64g + 4j + i = its low 4 bits for k = 4g + i and, as high nibble, for k = 16 + 4g + i
 *   Q5_0 Q5_1 Q5_K          then a line of fifth bits: bit g of byte 4j + i is that of k = 4g + i
 *   Q6_K                    then two lines: bits 2g, 2g + 1 of byte 4j + i of line h are bits 4, 5 of k = 16h + 4g + i
 *   MXFP4                   the nibble is the E2M1 code
 * Scales:
 *   Q8_0 Q4_0 Q5_0          16 x f16 d
 *   Q4_1 Q5_1               16 x f16 d, 16 x f16 m
 *   MXFP4                   16 x u8
 *   Q4_K Q5_K               8 x { 16 x u8 scale, 16 x u8 min }, 16 x f16 d, 16 x f16 dmin
 *   Q6_K                    16 x { 16 x i8 scale }, 16 x f16 d
 */
#include "common/base/check.h"
#include "common/kernels/kernels.h"
#include "common/tensor/blocks.h"
#include "common/tensor/quantize.h"

#define CHUNK 256u /* of K at a time: a block of any format */

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
    return f == ROW_Q8 ? (size_t)(k / QUANTS) * 4 : 0;
}

static bool takes(enum dtype format, enum row_format input)
{
    switch (format) {
    case DTYPE_F32:
    case DTYPE_F16:
    case DTYPE_BF16:
    case DTYPE_F8_E4M3:
        return input == ROW_F32 || input == ROW_BF16;
    default:
        return input == ROW_Q8;
    }
}

bool packed_shape(enum dtype format, enum row_format input, uint32_t n, uint32_t k,
                  struct packed *out)
{
    if (n == 0 || k == 0 || n > UINT32_MAX - 2 * PANEL) return false;
    if (format >= DTYPE_N_NATIVE || !takes(format, input)) return false;
    *out = (struct packed){
        .format = format,
        .input = input,
        .n = n,
        .k = k,
        .panels = (uint32_t)panel_count(n),
        .panel_bytes = panel_bytes(format, k),
    };
    return out->panel_bytes > 0 && out->panel_bytes <= SIZE_MAX / out->panels;
}

size_t packed_bytes(const struct packed *w)
{
    return (size_t)w->panels * w->panel_bytes;
}

/* ---- one feature's numbers into its panel ---- */

/* count numbers of `size` bytes at k: `along` of them lie together per feature. */
static void put_numbers(uint8_t *panel, uint32_t j, uint32_t k, uint32_t count, size_t size,
                        uint32_t along, const uint8_t *src)
{
    uint8_t *to = panel + (k * PANEL + j * along) * size;
    for (uint32_t i = 0; i < count; i += along)
        memcpy(to + (size_t)i * PANEL * size, src + i * size, along * size);
}

static void put_f8(uint8_t *panel, uint32_t panel_k, uint32_t j, uint32_t k, uint32_t count,
                   const uint8_t *row)
{
    put_numbers(panel, j, k, count, 1, 1, row);
    for (uint32_t b = 0; b < count; b += F8_BLOCK) {
        float scale;
        memcpy(&scale, row + count + b / F8_BLOCK * sizeof scale, sizeof scale);
        for (uint32_t i = b; i < count && i < b + F8_BLOCK; i++)
            if ((row[i] & 0x7fu) == 0x7f) scale = f32_from_bits(0x7fc00000u);
        memcpy(panel + panel_f8_scales(panel_k) + (size_t)(k + b) / F8_BLOCK * PANEL_LINE + 4 * j,
               &scale, sizeof scale);
    }
}

static void put_quants(enum dtype t, uint8_t *quants, uint32_t j, const struct codes *c)
{
    static const uint8_t e2m1[25] = {15, 0, 0, 0, 14, 0, 13, 0, 12, 11, 10, 9, 0,
                                     1,  2, 3, 4, 0,  5, 0,  6, 0,  0,  0,  7};
    uint8_t *to = quants + 4 * j;
    for (uint32_t i = 0; i < QUANTS && t == DTYPE_Q8_0; i++)
        to[i / 4 * PANEL_LINE + i % 4] = c->code[i];
    if (t == DTYPE_Q8_0) return;
    for (uint32_t i = 0; i < 16; i++) {
        uint8_t low = c->code[i], high = c->code[i + 16];
        if (t == DTYPE_MXFP4) {
            low = e2m1[low];
            high = e2m1[high];
        }
        to[i / 4 * PANEL_LINE + i % 4] = (uint8_t)((low & 15) | high << 4);
    }
    const uint32_t bits = panel_layout(t).quants == 320 ? 1 : panel_layout(t).quants == 384 ? 2 : 0;
    for (uint32_t line = 0; line < bits; line++)
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t byte = 0;
            for (uint32_t g = 0; g < 8 / bits; g++)
                byte |= (uint32_t)(c->code[16 * line + 4 * g + i] >> 4) << bits * g;
            to[(4 + line) * PANEL_LINE + i] = (uint8_t)byte;
        }
}

static void put_scales(enum dtype t, uint8_t *scales, uint32_t j, uint32_t part,
                       const struct codes *c)
{
    switch (t) {
    case DTYPE_MXFP4:
        scales[j] = (uint8_t)c->d;
        break;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
        scales[32 * part + j] = (uint8_t)c->scale[0];
        scales[32 * part + 16 + j] = (uint8_t)c->min;
        memcpy(scales + 256 + 2 * j, &c->d, 2);
        memcpy(scales + 288 + 2 * j, &c->m, 2);
        break;
    case DTYPE_Q6_K:
        scales[32 * part + j] = (uint8_t)c->scale[0];
        scales[32 * part + 16 + j] = (uint8_t)c->scale[1];
        memcpy(scales + 256 + 2 * j, &c->d, 2);
        break;
    default:
        memcpy(scales + 2 * j, &c->d, 2);
        if (codes_have_min(t)) memcpy(scales + 32 + 2 * j, &c->m, 2);
        break;
    }
}

static void put_blocks(enum dtype t, uint8_t *panel, uint32_t panel_k, uint32_t j, uint32_t k,
                       uint32_t count, const uint8_t *src)
{
    const struct panel_layout l = panel_layout(t);
    const uint32_t block = dtype_block(t);
    uint8_t *quants = panel + (size_t)k / QUANTS * l.quants;
    uint8_t *scales =
        panel + (size_t)panel_k / QUANTS * l.quants + (size_t)k / l.group * l.group_bytes;
    for (uint32_t i = 0; i < count; i += QUANTS) {
        const uint32_t part = i % block / QUANTS;
        struct codes c;
        codes_get(t, src + dtype_bytes(t, i / block * block), part, &c);
        put_quants(t, quants + (size_t)i / QUANTS * l.quants, j, &c);
        put_scales(t, scales + (size_t)i / l.group * l.group_bytes, j, part, &c);
    }
}

/* Elements [k, k + count) of feature j of a panel, from a row of just these in the panel's own type. */
static void put(const struct packed *w, uint8_t *panel, uint32_t j, uint32_t k, uint32_t count,
                const uint8_t *row)
{
    switch (w->format) {
    case DTYPE_F32:
        put_numbers(panel, j, k, count, 4, 1, row);
        break;
    case DTYPE_F16:
        put_numbers(panel, j, k, count, 2, 1, row);
        break;
    case DTYPE_BF16:
        put_numbers(panel, j, k, count, 2, 2, row);
        break;
    case DTYPE_F8_E4M3:
        put_f8(panel, w->k, j, k, count, row);
        break;
    default:
        put_blocks(w->format, panel, w->k, j, k, count, row);
        break;
    }
}

/* A row of the elements [k, k + count) alone: in place, or for F8, whose scales lie behind all codes, a copy. */
static const uint8_t *part_of_row(enum dtype t, const uint8_t *row, uint32_t row_k, uint32_t k,
                                  uint32_t count, uint8_t *copy)
{
    if (t != DTYPE_F8_E4M3) return row + dtype_bytes(t, k);
    memcpy(copy, row + k, count);
    memcpy(copy + count, row + row_k + (size_t)k / F8_BLOCK * 4,
           (size_t)(count + F8_BLOCK - 1) / F8_BLOCK * 4);
    return copy;
}

void pack_features(const struct packed *w, uint32_t first, uint32_t count, enum dtype t,
                   const void *src)
{
    assert(first <= w->n && count <= w->n - first);
    assert(t == w->format || dtype_can_encode(w->format));
    const size_t row_bytes = dtype_bytes(t, w->k);
    const uint8_t *bytes = src;

    /* Panel by panel, CHUNK of K at a time: the 16 rows are read as 16 streams and what is being written stays
     * in the nearest cache. */
    for (uint32_t feature = first; feature < first + count;) {
        uint32_t j0 = feature % PANEL;
        uint32_t here = PANEL - j0;
        if (here > first + count - feature) here = first + count - feature;
        uint8_t *panel = w->data + (size_t)(feature / PANEL) * w->panel_bytes;
        for (uint32_t k = 0; k < w->k; k += CHUNK) {
            const uint32_t span = w->k - k < CHUNK ? w->k - k : CHUNK;
            for (uint32_t j = 0; j < here; j++) {
                uint8_t copy[CHUNK + CHUNK / F8_BLOCK * 4], made[CHUNK * 4];
                const uint8_t *row = bytes + (size_t)(feature - first + j) * row_bytes;
                row = part_of_row(t, row, w->k, k, span, copy);
                if (t != w->format) {
                    float x[CHUNK];
                    dtype_to_f32(t, row, span, x);
                    dtype_from_f32(w->format, x, span, made);
                    row = made;
                }
                put(w, panel, j0 + j, k, span, row);
            }
        }
        feature += here;
    }
}

void packed_clear_padding(const struct packed *w)
{
    /* 0 in every format: blocks of zeros have zero scales and minima, and their codes weigh nothing. */
    static const uint8_t zero[CHUNK * 4];
    for (uint32_t feature = w->n; feature < w->panels * PANEL; feature++) {
        uint8_t *panel = w->data + (size_t)(feature / PANEL) * w->panel_bytes;
        for (uint32_t k = 0; k < w->k; k += CHUNK)
            put(w, panel, feature % PANEL, k, w->k - k < CHUNK ? w->k - k : CHUNK, zero);
    }
    if (w->format == DTYPE_F32 || w->format == DTYPE_F16 || w->format == DTYPE_BF16) return;
    /* What rounding up to lines leaves: between F8's codes and scales, and at a panel's end. */
    for (uint32_t p = 0; p < w->panels; p++) {
        uint8_t *panel = w->data + p * w->panel_bytes;
        size_t from, end = w->panel_bytes;
        if (w->format == DTYPE_F8_E4M3) {
            from = (size_t)w->k * PANEL;
            end = panel_f8_scales(w->k);
        } else {
            const struct panel_layout l = panel_layout(w->format);
            from = (size_t)w->k / QUANTS * l.quants + (size_t)w->k / l.group * l.group_bytes;
        }
        memset(panel + from, 0, end - from);
    }
}
