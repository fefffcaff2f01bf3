/* How context and cache follow from the memory there is, and what is said when there is too little. */
// links: coordinator
#include <criterion/criterion.h>
#include <string.h>

#include "coordinator/model/model.h"
#include "coordinator/sizing.h"

#define GIB (1ull << 30)

static struct model_file *file;
static uint64_t block;

static void open_model(void)
{
    struct err why = {0};
    cr_assert_eq(model_file_open(TEST_DATA "/models/tiny-qwen3_moe", &file, &why), ERR_OK, "%s",
                 why.text);
    block = plan_kv_bytes_per_token(file, QUANTIZE_NONE) * KV_BLOCK_TOKENS;
}

static void close_model(void)
{
    model_file_close(file);
}

TestSuite(sizing, .init = open_model, .fini = close_model);

static struct sizing decide(struct sizing_input in)
{
    struct sizing out;
    struct err why = {0};
    in.file = file;
    in.chunk = in.chunk > 0 ? in.chunk : 256;
    cr_assert_eq(sizing_decide(&in, &out, &why), ERR_OK, "%s", why.text);
    cr_expect_leq(out.total_bytes, in.available_bytes);
    cr_expect_geq((uint64_t)out.n_kv_blocks * KV_BLOCK_TOKENS, out.ctx,
                  "a full context fits the cache");
    cr_expect_eq(out.kv_bytes, out.n_kv_blocks * block);
    return out;
}

static const char *refused(struct sizing_input in, enum err_code code)
{
    static struct err why;
    struct sizing out;
    in.file = file;
    in.chunk = in.chunk > 0 ? in.chunk : 256;
    cr_expect_eq(sizing_decide(&in, &out, &why), code, "%s", why.text);
    return why.text;
}

/* What a process takes without any cache. */
static uint64_t fixed(bool local)
{
    struct sizing z =
        decide((struct sizing_input){.local_experts = local, .available_bytes = 64 * GIB});
    return z.total_bytes - z.kv_bytes;
}

Test(sizing, with_memory_the_context_is_the_models)
{
    struct sizing z = decide((struct sizing_input){.available_bytes = 64 * GIB});
    cr_expect_eq(z.ctx, model_file_hparams(file)->ctx_max);
    cr_expect_eq(z.experts_bytes, 0u);
    cr_expect_eq(z.n_kv_blocks, 64 * z.ctx / KV_BLOCK_TOKENS, "no more than 64 full contexts");
    cr_expect_gt(decide((struct sizing_input){.local_experts = true, .available_bytes = 64 * GIB})
                     .experts_bytes,
                 0u);
}

Test(sizing, without_it_the_context_is_what_half_of_the_rest_holds)
{
    struct sizing z = decide((struct sizing_input){.available_bytes = fixed(false) + 20 * block});
    cr_expect_eq(z.n_kv_blocks, 10u);
    cr_expect_eq(z.ctx, 10 * KV_BLOCK_TOKENS);
    z = decide((struct sizing_input){.available_bytes = fixed(false) + 20 * block,
                                     .neighbours_bytes = 12 * block});
    cr_expect_eq(z.n_kv_blocks, 4u, "the nodes of this machine have their share");
    z = decide((struct sizing_input){.available_bytes = fixed(false) + 20 * block,
                                     .neighbours_bytes = 64 * GIB});
    cr_expect_eq(z.n_kv_blocks, 1u);
    z = decide((struct sizing_input){.available_bytes = fixed(false) + block});
    cr_expect_eq(z.n_kv_blocks, 1u);
}

Test(sizing, a_context_that_is_asked_for_is_kept)
{
    struct sizing z = decide((struct sizing_input){.available_bytes = fixed(false) + 20 * block,
                                                   .ctx = 19 * KV_BLOCK_TOKENS + 1});
    cr_expect_eq(z.ctx, 19 * KV_BLOCK_TOKENS + 1);
    cr_expect_eq(z.n_kv_blocks, 20u);
    cr_expect_not_null(strstr(
        refused((struct sizing_input){.available_bytes = 64 * GIB, .ctx = 4097}, ERR_INVALID),
        "4097"));
    cr_expect_not_null(strstr(
        refused((struct sizing_input){.available_bytes = 64 * GIB, .ctx = 4097}, ERR_INVALID),
        "4096"));
}

Test(sizing, a_cache_that_is_asked_for_is_kept)
{
    struct sizing z = decide((struct sizing_input){.available_bytes = fixed(false) + 8 * block,
                                                   .kv_bytes = 7 * block + 5});
    cr_expect_eq(z.n_kv_blocks, 7u);
    cr_expect_eq(z.ctx, 7 * KV_BLOCK_TOKENS);
    const char *text = refused((struct sizing_input){.available_bytes = 64 * GIB,
                                                     .kv_bytes = 7 * block,
                                                     .ctx = 8 * KV_BLOCK_TOKENS},
                               ERR_INVALID);
    cr_expect_not_null(strstr(text, "448 tokens"), "%s", text);
    cr_expect_not_null(strstr(text, "--ctx of 512 tokens"), "%s", text);
    text = refused((struct sizing_input){.available_bytes = 64 * GIB, .kv_bytes = block - 1},
                   ERR_INVALID);
    cr_expect_not_null(strstr(text, "one block of 64 tokens"), "%s", text);
}

Test(sizing, a_shortfall_names_what_is_needed_and_what_there_is)
{
    const char *text = refused(
        (struct sizing_input){.available_bytes = fixed(true) + block - 1, .local_experts = true},
        ERR_EXHAUSTED);
    cr_expect_not_null(strstr(text, "are available"), "%s", text);
    cr_expect_not_null(strstr(text, "cache for 64 tokens"), "%s", text);
    text = refused((struct sizing_input){.available_bytes = 1 * GIB, .kv_bytes = 3 * GIB},
                   ERR_EXHAUSTED);
    cr_expect_not_null(strstr(text, "--kv-bytes 3.0 GiB"), "%s", text);
    cr_expect_not_null(strstr(text, "1.0 GiB are available"), "%s", text);
    cr_expect_not_null(strstr(text, "smaller --kv-bytes"), "%s", text);
    refused((struct sizing_input){.available_bytes = 0}, ERR_EXHAUSTED);
    refused((struct sizing_input){.available_bytes = 64 * GIB, .kv_bytes = UINT64_MAX / 2},
            ERR_EXHAUSTED);
}

Test(sizing, a_small_chunk_does_not_shrink_the_decode_passes)
{
    struct sizing one = decide((struct sizing_input){.available_bytes = 64 * GIB, .chunk = 1});
    struct sizing most = decide((struct sizing_input){.available_bytes = 64 * GIB, .chunk = 64});
    cr_expect_eq(one.scratch_bytes, most.scratch_bytes);
}
