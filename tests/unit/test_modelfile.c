/* Whole model folders: what opens, what is refused, and with which words. */
// links: modelfile
#include <criterion/criterion.h>

#include "common/modelfile/model_file.h"

#define MODELS TEST_DATA "/models/"

Test(modelfile, opens_every_family)
{
    static const char *const dirs[] = {MODELS "tiny-mixtral", MODELS "tiny-mixtral-bf16", MODELS "tiny-qwen3_moe",
                                       MODELS "tiny-qwen3_moe-bf16", MODELS "tiny-olmoe", PROJECT_ROOT "/deploy/demo"};
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        struct model_file *f = NULL;
        struct err why = {0};
        cr_assert_eq(model_file_open(dirs[i], &f, &why), ERR_OK, "%s", why.text);
        model_file_close(f);
    }
}
