/* Rows of tensors as the rest of the program takes them, whatever their order in the file. */
#include <assert.h>
#include <string.h>

#include "common/modelfile/model_file.h"

#define MX_BLOCK     32u
#define MX_BYTES     16u /* codes of one block */
#define MX_ROW_BYTES 17u /* with the scale before them */

uint64_t tensor_columns(const struct tensor *t)
{
    return t->dims[t->n_dims - 1];
}

uint64_t tensor_n_elements(const struct tensor *t)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->dims[i]; /* checked against the file's size at open */
    return n;
}

/* Single numbers that do not stand together. */
static void gather(const struct tensor *t, const uint8_t *from, uint8_t *out)
{
    const size_t each = dtype_block_bytes(t->dtype);
    for (uint64_t i = 0; i < tensor_columns(t); i++)
        memcpy(out + i * each, from + i * t->col_stride, each);
}

/* In the file byte i of a block has elements 2i and 2i + 1; in a row it has i and i + 16, and the scale goes before. */
static void join_mxfp4(const uint8_t *codes, const uint8_t *scales, uint64_t blocks, uint8_t *out)
{
    for (uint64_t b = 0; b < blocks; b++, codes += MX_BYTES, out += MX_ROW_BYTES) {
        out[0] = scales[b];
        for (uint32_t j = 0; j < MX_BYTES; j++) {
            uint8_t low = codes[j / 2], high = codes[MX_BYTES / 2 + j / 2];
            out[1 + j] =
                (uint8_t)(j % 2 == 0 ? (low & 15u) | (high & 15u) << 4 : low >> 4 | (high & 0xf0u));
        }
    }
}

const void *tensor_row(const struct tensor *t, uint64_t row, void *tmp)
{
    const uint8_t *from = t->data + row * t->row_stride;
    const uint64_t columns = tensor_columns(t);
    assert(t->dtype < DTYPE_N && row < tensor_n_elements(t) / columns);
    if (t->scales != NULL && t->dtype == DTYPE_MXFP4) {
        join_mxfp4(from, t->scales + row * t->scales_stride, columns / MX_BLOCK, tmp);
        return tmp;
    }
    if (t->scales != NULL) {
        uint8_t *out = tmp;
        const uint8_t *scales = t->scales + (t->scale_row0 + row) / F8_BLOCK * t->scales_stride;
        memcpy(out, from, columns);
        memcpy(out + columns, scales, (columns + F8_BLOCK - 1) / F8_BLOCK * sizeof(float));
        return tmp;
    }
    if (t->col_stride == 0) return from;
    gather(t, from, tmp);
    return tmp;
}

void tensor_vector_f32(const struct tensor *t, float *out)
{
    const uint64_t n = tensor_n_elements(t);
    assert(t->n_dims == 1 || t->col_stride == 0);
    const size_t each = dtype_block_bytes(t->dtype),
                 step = t->col_stride == 0 ? each : t->col_stride;
    assert(dtype_block(t->dtype) == 1);
    for (uint64_t i = 0; i < n; i++)
        dtype_to_f32(t->dtype, t->data + i * step, 1, &out[i]);
}
