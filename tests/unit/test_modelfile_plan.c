/* How much memory a model takes, and the text that names sets of experts. */
// links: modelfile kernels
#include <criterion/criterion.h>

#include "common/base/mem.h"
#include "common/kernels/kernels.h"
#include "common/modelfile/plan.h"
#include "tests/unit/modelfile_fixture.h"

static const struct hparams small = {
    .n_layers = 6, .n_experts = 8, .is_moe = {true, true, false, true, true, true}};

static void expect_spec(const char *spec, const char *printed, uint32_t count)
{
    struct expert_set s, again;
    struct err why = {0};
    cr_assert_eq(experts_spec_parse(spec, &small, &s, &why), ERR_OK, "%s: %s", spec, why.text);
    cr_expect_eq(expert_set_count(&s), count, "%s: %u", spec, expert_set_count(&s));
    struct buf b = {0};
    experts_spec_print(&s, &small, &b);
    cr_expect_str_eq(b.len > 0 ? b.data : "", printed);
    cr_assert_eq(experts_spec_parse(b.data, &small, &again, &why), ERR_OK, "%s: %s", b.data,
                 why.text);
    for (uint32_t l = 0; l < 6; l++)
        for (uint32_t e = 0; e < 8; e++)
            cr_expect_eq(expert_set_has(&s, l, e), expert_set_has(&again, l, e));
    expert_set_deinit(&s);
    expert_set_deinit(&again);
    buf_free(&b);
}

Test(modelfile_plan, a_spec_prints_as_a_short_one_that_means_the_same)
{
    expect_spec("all", "all", 40);
    expect_spec("*:*", "all", 40);
    expect_spec("0:3", "0:3", 1);
    expect_spec("0-1:0-2", "0-1:0-2", 6);
    expect_spec("1-3:5", "1-3:5", 2);
    expect_spec("*:5", "0-5:5", 5);
    expect_spec("0:1,0:2,0:3,4:7,0:2", "0:1-3,4:7", 4);
    expect_spec("0:*,1:*,3:0", "0-1:0-7,3:0", 17);
    expect_spec("0/1", "all", 40);
    expect_spec("0/2,1/2", "all", 40);
    expect_spec("0/8", "0:0,1:7,3:5,4:4,5:3", 5);
    expect_spec("999999998/999999999,0:0", "0:0", 1);
}

Test(modelfile_plan, shares_are_disjoint_and_complete)
{
    for (uint32_t n = 1; n <= 9; n++) {
        uint32_t seen[6][8] = {0};
        for (uint32_t i = 0; i < n; i++) {
            char spec[32];
            snprintf(spec, sizeof spec, "%u/%u", i, n);
            struct expert_set s;
            cr_assert_eq(experts_spec_parse(spec, &small, &s, NULL), ERR_OK);
            for (uint32_t l = 0; l < 6; l++)
                for (uint32_t e = 0; e < 8; e++) {
                    if (!expert_set_has(&s, l, e)) continue;
                    cr_expect_eq((l + e) % n, i);
                    seen[l][e]++;
                }
            expert_set_deinit(&s);
        }
        for (uint32_t l = 0; l < 6; l++)
            for (uint32_t e = 0; e < 8; e++)
                cr_expect_eq(seen[l][e], small.is_moe[l] ? 1 : 0);
    }
}

Test(modelfile_plan, a_wrong_item_is_named_with_its_bound)
{
    static const struct {
        const char *spec, *item, *bound;
    } cases[] = {
        {"", "''", "none of"},
        {"0:1,", "''", "none of"},
        {"al", "'al'", "none of"},
        {"0:8", "'0:8'", "0 to 7"},
        {"6:0", "'6:0'", "0 to 5"},
        {"0:1,0-9:0", "'0-9:0'", "0 to 5"},
        {"2:0", "'2:0'", "no experts"},
        {"3-1:0", "'3-1:0'", "3 to 1"},
        {"3/3", "'3/3'", "3 of 3"},
        {"0/0", "'0/0'", "0 of 0"},
        {"1/", "'1/'", "none of"},
        {"0:", "'0:'", "none of"},
        {":0", "':0'", "none of"},
        {"0:1x", "'0:1x'", "none of"},
        {"-1:0", "'-1:0'", "none of"},
        {"0:1-", "'0:1-'", "none of"},
        {"0 :1", "'0 :1'", "none of"},
        {"0:0:0", "'0:0:0'", "none of"},
        {"4294967296:0", "'4294967296:0'", "too large"},
        {"0/4294967297", "'0/4294967297'", "too large"},
        {"**:0", "'**:0'", "none of"},
        {"0:1;0:2", "'0:1;0:2'", "none of"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct expert_set s;
        struct err why = {0};
        cr_expect_eq(experts_spec_parse(cases[i].spec, &small, &s, &why), ERR_INVALID, "%s",
                     cases[i].spec);
        cr_expect(strstr(why.text, cases[i].item) && strstr(why.text, cases[i].bound), "%s: %s",
                  cases[i].spec, why.text);
    }
    struct expert_set s;
    mem_fail_at(1);
    cr_expect_eq(experts_spec_parse("all", &small, &s, NULL), ERR_EXHAUSTED);
    mem_fail_at(0);
}

Test(modelfile_plan, packed_sizes_follow_the_layout)
{
    /* Panels of 16 outputs, an even count of them, each to 64 bytes. */
    cr_expect_eq(plan_packed_bytes(DTYPE_F32, 32, 64), 2 * 16 * 64 * 4);
    cr_expect_eq(plan_packed_bytes(DTYPE_F32, 33, 64), 4 * 16 * 64 * 4);
    cr_expect_eq(plan_packed_bytes(DTYPE_F32, 1, 64), 2 * 16 * 64 * 4);
    cr_expect_eq(plan_packed_bytes(DTYPE_F16, 32, 64), 2 * 16 * 64 * 2);
    cr_expect_eq(plan_packed_bytes(DTYPE_BF16, 32, 63), 2 * 16 * 63 * 4, "odd: held as F32");
    cr_expect_eq(plan_packed_bytes(DTYPE_F8_E4M3, 32, 130), 2 * (2112 + 128));
    cr_expect_eq(plan_packed_bytes(DTYPE_Q6_K, 32, 256), 2 * (8 * 384 + 320), "288 bytes, to 320");
    cr_expect_eq(plan_packed_bytes(DTYPE_Q4_K, 32, 96), 0);
    cr_expect_eq(plan_packed_bytes(DTYPE_BF16, 32, 64), 2 * 16 * 64 * 2);
    cr_expect_eq(plan_packed_bytes(DTYPE_Q8_0, 32, 64), 2 * (16 * 64 + 2 * 32));
    cr_expect_eq(plan_packed_bytes(DTYPE_Q8_0, 32, 32), 2 * 576, "512 + 32 bytes, to 64");
}

Test(modelfile_plan, packed_sizes_are_those_of_the_kernels)
{
    static const struct {
        enum dtype dtype;
        enum row_format input;
    } kinds[] = {{DTYPE_F32, ROW_F32},      {DTYPE_F16, ROW_BF16}, {DTYPE_BF16, ROW_BF16},
                 {DTYPE_F8_E4M3, ROW_BF16}, {DTYPE_Q8_0, ROW_Q8},  {DTYPE_Q4_0, ROW_Q8},
                 {DTYPE_Q4_1, ROW_Q8},      {DTYPE_Q5_0, ROW_Q8},  {DTYPE_Q5_1, ROW_Q8},
                 {DTYPE_Q4_K, ROW_Q8},      {DTYPE_Q5_K, ROW_Q8},  {DTYPE_Q6_K, ROW_Q8},
                 {DTYPE_MXFP4, ROW_Q8}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (uint32_t n = 1; n < 100; n += 7)
            for (uint32_t k = 1; k <= 1024; k += k % 32 == 0 ? 32 : 1) {
                struct packed w;
                enum dtype held = panel_dtype(kinds[i].dtype, k);
                uint64_t bytes =
                    packed_shape(held, kinds[i].input, n, k, &w) ? packed_bytes(&w) : 0;
                cr_expect_eq(plan_packed_bytes(kinds[i].dtype, n, k), bytes, "%s [%u, %u]",
                             dtype_name(kinds[i].dtype), n, k);
            }
}

static struct model_file *open_ok(const char *dir)
{
    struct model_file *f = NULL;
    struct err why = {0};
    cr_assert_eq(model_file_open(dir, &f, &why), ERR_OK, "%s", why.text);
    return f;
}

Test(modelfile_plan, the_parts_of_a_model_add_up)
{
    struct model_file *f =
        open_ok(MODELS "tiny-mixtral"); /* D 64, F 32, 4 heads of 16, 2 kv heads, V 320, F32 */
    cr_expect_eq(plan_expert_bytes(f, QUANTIZE_NONE, 0), 3 * 32 * 64 * 4);
    cr_expect_eq(plan_expert_bytes(f, QUANTIZE_Q8_0, 0),
                 2 * plan_packed_bytes(DTYPE_Q8_0, 32, 64) + plan_packed_bytes(DTYPE_Q8_0, 64, 32));
    struct plan_coordinator c = plan_coordinator(f, QUANTIZE_NONE);
    cr_expect_eq(c.embedding, 320 * 64 * 4);
    cr_expect_eq(c.head, 320 * 64 * 4);
    cr_expect_eq(c.attention, 2 * (64 * 64 * 4 * 2 + 32 * 64 * 4 * 2));
    cr_expect_eq(c.router, 2 * 32 * 64 * 4, "6 experts take two panels");
    cr_expect_eq(c.vectors, 5 * 64 * 4);
    cr_expect_eq(c.dense, 0);
    cr_expect_eq(c.total, c.embedding + c.head + c.attention + c.router + c.vectors);
    cr_expect_eq(plan_kv_bytes_per_token(f, QUANTIZE_NONE), 2 * 2 * 16 * 2 * 4);
    struct expert_set held;
    cr_assert_eq(experts_spec_parse("0:0-2,1:5", model_file_hparams(f), &held, NULL), ERR_OK);
    cr_expect_eq(plan_experts_bytes(f, QUANTIZE_NONE, &held), 4 * 3 * 32 * 64 * 4);
    expert_set_deinit(&held);
    struct plan_params p = plan_params(f);
    size_t n;
    free(read_bytes(MODELS "tiny-mixtral/model.safetensors", &n));
    cr_expect_eq(p.total * 4 + 8 + 5960, n,
                 "the file holds the parameters and its header, no more");
    cr_expect_eq(p.total - p.active, 2 * (6 - 2) * 3 * 32 * 64);
    model_file_close(f);

    f = open_ok(MODELS "tiny-mixtral-bf16");
    cr_expect_eq(plan_kv_bytes_per_token(f, QUANTIZE_NONE), 2 * 2 * 16 * 2 * 2);
    cr_expect_eq(plan_expert_bytes(f, QUANTIZE_NONE, 0), 3 * 32 * 64 * 2);
    model_file_close(f);
}

Test(modelfile_plan, quantization_spares_what_the_rule_spares)
{
    struct model_file *f = open_ok(PROJECT_ROOT "/deploy/demo");
    for (int role = 0; role < W_N_ROLES; role++) {
        const struct tensor *t = model_file_find(f, role, 0, 0);
        if (t == NULL) continue;
        bool spared = role == W_EMBED || role == W_ROUTER || t->n_dims == 1;
        cr_expect_eq(plan_dtype(role, t, QUANTIZE_Q8_0), spared ? DTYPE_BF16 : DTYPE_Q8_0, "%s",
                     t->name);
        cr_expect_eq(plan_dtype(role, t, QUANTIZE_NONE), DTYPE_BF16);
    }
    struct tensor ragged = {.dtype = DTYPE_BF16, .n_dims = 2, .dims = {64, 48}};
    cr_expect_eq(plan_dtype(W_Q, &ragged, QUANTIZE_Q8_0), DTYPE_BF16, "48 is no multiple of 32");
    model_file_close(f);
    enum quantize q;
    cr_expect(quantize_find("q8_0", &q) && q == QUANTIZE_Q8_0 && !quantize_find("q4_9", &q));
}
