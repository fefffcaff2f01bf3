/* The header of a safetensors file: whatever it says, the tensors of an accepted one lie in the file one behind the
 * other. */
// links: modelfile
// covers: common/modelfile/safetensors.c
// max_len: 4096
#include <string.h>

#include "common/modelfile/safetensors.h"
#include "tests/fuzz/fuzz.h"

void fuzz_init(void) {}

int fuzz_one(const uint8_t *data, size_t n)
{
    struct safetensors s;
    struct err why;
    enum err_code rc = safetensors_parse(data, n, &s, &why);
    if (rc != ERR_OK) return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : (int)rc;
    uint64_t at = s.n > 0 ? s.tensors[0].off : n;
    FUZZ_CHECK(at >= 8 && at <= n, "the data begin at %llu of %zu", (unsigned long long)at, n);
    for (uint32_t i = 0; i < s.n; i++) {
        const struct safetensors_tensor *t = &s.tensors[i];
        FUZZ_CHECK(t->off == at && t->bytes <= n - at, "tensor %u at %llu + %llu of %zu", i,
                   (unsigned long long)t->off, (unsigned long long)t->bytes, n);
        FUZZ_CHECK(t->n_dims <= TENSOR_MAX_DIMS, "%u dimensions", t->n_dims);
        FUZZ_CHECK(strlen(t->dtype_text) > 0, "tensor %u without a format", i);
        at += t->bytes;
    }
    FUZZ_CHECK(at == n, "the tensors end at %llu of %zu", (unsigned long long)at, n);
    int answer = 100 + (int)s.n;
    safetensors_deinit(&s);
    return answer;
}
