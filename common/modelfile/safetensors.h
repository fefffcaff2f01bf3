/* safetensors.h - the header of a safetensors file. Pure over the bytes given: no files, no state, any thread.
 *
 *   u64 N, little-endian | N bytes of JSON | data
 *   JSON: {"name": {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, "__metadata__": {..}}
 *
 * The rules of the format's own reader are all enforced: sizes agree, no overlap, no hole, no trailing bytes. */
#ifndef MOESAIC_MODELFILE_SAFETENSORS_H
#define MOESAIC_MODELFILE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/modelfile/model_file.h"
#include "common/tensor/dtype.h"

#define SAFETENSORS_DTYPE_TEXT 16u

struct safetensors_tensor {
    char *name;
    char dtype_text[SAFETENSORS_DTYPE_TEXT]; /* as in the file: "BF16", "I32", ... */
    enum dtype dtype; /* F32, F16, BF16, F8_E4M3 (codes alone); DTYPE_N for every other */
    uint32_t n_dims;
    uint64_t dims[TENSOR_MAX_DIMS]; /* outermost first */
    uint64_t off, bytes;            /* off from the start of the file */
};

struct safetensors {
    struct safetensors_tensor *tensors; /* in order of their bytes */
    uint32_t n;
};

/* Parse and check a whole file of n bytes; reads the header only. `out` keeps no pointer into bytes.
 * CORRUPT names the tensor and the two numbers that disagree; UNSUPPORTED for more than TENSOR_MAX_DIMS
 * dimensions; EXHAUSTED. */
enum err_code safetensors_parse(const uint8_t *bytes, size_t n, struct safetensors *out,
                                struct err *why);
void safetensors_deinit(struct safetensors *s);

#endif
