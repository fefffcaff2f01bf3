/* Opening a model, its cache and its passes: sizes as planned, and failures. */
// links: model
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/experts/experts.h"
#include "common/modelfile/plan.h"
#include "coordinator/model/model.h"

struct fixture {
    struct model_file *file;
    const struct kernels *k;
    struct workers *workers;
};

static void open_fixture(struct fixture *x, const char *model)
{
    char path[1024];
    struct err why = {0};
    snprintf(path, sizeof path, "%s/models/%s", TEST_DATA, model);
    cr_assert_eq(model_file_open(path, &x->file, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(kernels_pick(NULL, &x->k, &why), ERR_OK);
    cr_assert_eq(workers_open(2, 0, &x->workers, &why), ERR_OK);
}

static void close_fixture(struct fixture *x)
{
    workers_close(x->workers);
    model_file_close(x->file);
}

Test(model, takes_the_memory_that_was_planned)
{
    static const char *const models[] = {"tiny-mixtral", "tiny-qwen3_moe-bf16", "tiny-olmoe",
                                         "dense-layer-qwen3_moe"};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++)
        for (int q = 0; q < QUANTIZE_N; q++) {
            struct fixture x;
            struct err why = {0};
            open_fixture(&x, models[i]);
            struct model *m;
            struct expert_store *s;
            const char *name = quantize_name((enum quantize)q);
            cr_assert_eq(model_open(x.file, name, x.k, x.workers, &m, &why), ERR_OK, "%s",
                         why.text);
            cr_assert_eq(expert_store_open(x.file, name, x.k, &s, &why), ERR_OK, "%s", why.text);
            struct plan_coordinator plan = plan_coordinator(x.file, (enum quantize)q);
            size_t planned =
                (size_t)(plan.total - plan.embedding); /* the embedding stays in the file */
            size_t padding = (2 + 12 * (size_t)model_hparams(m)->n_layers) * 64;
            cr_expect_geq(model_resident_bytes(m), planned);
            cr_expect_leq(model_resident_bytes(m), planned + padding, "%s %s", models[i], name);
            cr_expect_eq(model_kv_block_bytes(m),
                         KV_BLOCK_TOKENS * plan_kv_bytes_per_token(x.file, (enum quantize)q));
            cr_expect_eq(expert_store_bytes_each(s, 0),
                         plan_expert_bytes(x.file, (enum quantize)q, 0));
            cr_expect_eq(model_expert_rows(m, 0), expert_store_rows(s, 0));
            cr_expect_eq(model_reply_bf16(m), expert_store_reply_bf16(s));
            expert_store_close(s);
            model_close(m);
            close_fixture(&x);
        }
}

Test(model, an_unknown_quantization_is_refused_by_name)
{
    struct fixture x;
    struct err why = {0};
    open_fixture(&x, "tiny-mixtral");
    struct model *m = NULL;
    cr_expect_eq(model_open(x.file, "q2", x.k, x.workers, &m, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "'q2'") != NULL && strstr(why.text, "tiny-mixtral") != NULL, "%s",
              why.text);
    cr_expect_null(m);
    close_fixture(&x);
}

Test(model, every_failed_allocation_is_an_error)
{
    struct fixture x;
    struct err why = {0};
    open_fixture(&x, "tiny-qwen3_moe");
    uint32_t failed = 0;
    for (uint64_t n = 1;; n++) {
        struct model *m = NULL;
        struct kv_store *kv = NULL;
        struct model_pass *p = NULL;
        mem_fail_at(n);
        enum err_code rc = model_open(x.file, "none", x.k, x.workers, &m, &why);
        if (rc == ERR_OK) rc = kv_store_open(m, 3, &kv, &why);
        if (rc == ERR_OK) rc = model_pass_open(m, 4, 2, &p, &why);
        mem_fail_at(0);
        if (rc != ERR_OK) cr_expect_eq(rc, ERR_EXHAUSTED, "%s", why.text);
        model_pass_close(p);
        kv_store_close(kv);
        model_close(m);
        if (rc == ERR_OK) break;
        failed++;
    }
    cr_expect_geq(failed, 8u);
    close_fixture(&x);
}

Test(model, a_cache_that_cannot_be_is_an_error_with_its_size)
{
    struct fixture x;
    struct err why = {0};
    open_fixture(&x, "tiny-qwen3_moe");
    struct model *m;
    struct kv_store *kv = NULL;
    cr_assert_eq(model_open(x.file, NULL, x.k, x.workers, &m, &why), ERR_OK, "%s", why.text);
    cr_expect_eq(kv_store_open(m, UINT32_MAX, &kv, &why),
                 ERR_EXHAUSTED); /* 280 TB of address space */
    cr_expect(strstr(why.text, "4294967295 key-value blocks") != NULL, "%s", why.text);
    cr_expect_null(kv);
    model_close(m);
    close_fixture(&x);
}
