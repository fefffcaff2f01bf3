#include "common/kernels/kernels.h"

#include <string.h>

#include "common/base/check.h"
#include "common/kernels/cpu.h"
#include "common/kernels/variants.h"

#define KERNEL(kernel, widest) .kernel = kernel##_ref,
static const struct kernels table_ref = {
    .name = "ref",
#include "common/kernels/kernels.def"
};
#if defined(__x86_64__)
#define KERNEL(kernel, widest) .kernel = kernel##_avx2,
static const struct kernels table_avx2 = {
    .name = "avx2",
#include "common/kernels/kernels.def"
};
#define KERNEL(kernel, widest) .kernel = kernel##_##widest,
static const struct kernels table_avx512 = {
    .name = "avx512",
#include "common/kernels/kernels.def"
};
#endif

static const struct {
    const struct kernels *table;
    uint32_t needs;
} variants[] = {
#define VARIANT(name, needs) {&table_##name, needs},
#include "common/kernels/kernels.def"
};

const struct kernels *kernels_variant(uint32_t i)
{
    return i < ARRAY_LEN(variants) ? variants[i].table : NULL;
}

enum err_code kernels_pick(const char *wanted, const struct kernels **out, struct err *why)
{
    uint32_t have = cpu_features();
    if (wanted == NULL || wanted[0] == 0) {
        for (size_t i = ARRAY_LEN(variants); i-- > 0;) {
            if ((variants[i].needs & ~have) != 0) continue;
            *out = variants[i].table;
            return ERR_OK;
        }
    }
    for (size_t i = 0; wanted != NULL && i < ARRAY_LEN(variants); i++) {
        if (strcmp(variants[i].table->name, wanted) != 0) continue;
        uint32_t missing = variants[i].needs & ~have;
        if (missing != 0)
            return err_set(why, ERR_UNSUPPORTED,
                           "kernels '%s' need %s, which this CPU does not have", wanted,
                           cpu_feature_name(missing));
        *out = variants[i].table;
        return ERR_OK;
    }
    return err_set(why, ERR_INVALID, "unknown kernels '%.32s': this build has%s", wanted,
#define VARIANT(name, needs) " " #name
#include "common/kernels/kernels.def"
    );
}
