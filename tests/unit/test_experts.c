/* Experts held in memory: loading and counting, their rows against plain arithmetic, many rows and few, failures. */
// links: experts
// threads: yes
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/experts/experts.h"
#include "common/experts/products.h"
#include "tests/unit/modelfile_fixture.h"

struct fixture {
    struct model_file *file;
    const struct kernels *k;
    struct workers *workers;
    struct expert_store *store;
    uint32_t d, f;
};

static void open_fixture(struct fixture *x, const char *model, const char *quantize,
                         unsigned threads)
{
    char path[1024];
    struct err why = {0};
    snprintf(path, sizeof path, "%s/models/%s", TEST_DATA, model);
    cr_assert_eq(model_file_open(path, &x->file, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(kernels_pick(NULL, &x->k, &why), ERR_OK);
    cr_assert_eq(workers_open(threads, 0, &x->workers, &why), ERR_OK);
    cr_assert_eq(expert_store_open(x->file, quantize, x->k, &x->store, &why), ERR_OK, "%s",
                 why.text);
    x->d = model_file_hparams(x->file)->hidden;
    x->f = model_file_hparams(x->file)->expert_width;
}

static void close_fixture(struct fixture *x)
{
    expert_store_close(x->store);
    workers_close(x->workers);
    model_file_close(x->file);
}

static void load(struct fixture *x, uint32_t layer, uint32_t expert)
{
    struct err why = {0};
    cr_assert_eq(expert_store_load(x->store, layer, expert, x->workers, &why), ERR_OK, "%s",
                 why.text);
}

/* m random rows in the store's format, and as f32 what they stand for. */
static struct rows make_rows(const struct fixture *x, uint32_t m, float *values)
{
    enum row_format f = expert_store_rows(x->store, 0);
    void *place = mem_aligned(64, rows_bytes(f, m, x->d));
    cr_assert(place);
    struct rows r = rows_at(place, f, m, x->d);
    for (uint32_t i = 0; i < m; i++) {
        float *v = values + (size_t)i * x->d;
        for (uint32_t j = 0; j < x->d; j++)
            v[j] = (float)(rng_uniform(i, j, 9) * 4 - 2);
        rows_set(x->k, &r, i, v);
        for (uint32_t j = 0; j < x->d; j++) {
            size_t at = (size_t)i * x->d + j;
            if (f == ROW_BF16) v[j] = bf16_to_f32(((uint16_t *)r.data)[at]);
            if (f == ROW_Q8) v[j] = (float)((int8_t *)r.data)[at] * r.scales[at / 32];
        }
    }
    return r;
}

static void dense(const struct fixture *x, enum weight_role role, uint32_t layer, uint32_t expert,
                  const double *in, uint32_t k, double *out, uint32_t n)
{
    const struct tensor *t = model_file_find(x->file, role, layer, expert);
    float *w = mem_zalloc_array((size_t)n * k, sizeof *w);
    cr_assert(w);
    dtype_to_f32(t->dtype, t->data, (size_t)n * k, w);
    for (uint32_t i = 0; i < n; i++) {
        out[i] = 0;
        for (uint32_t j = 0; j < k; j++)
            out[i] += (double)w[(size_t)i * k + j] * in[j];
    }
    mem_free(w);
}

static float result(const struct fixture *x, const uint8_t *out, uint32_t row, uint32_t i)
{
    size_t at = (size_t)row * x->d + i;
    if (expert_store_reply_bf16(x->store))
        return bf16_to_f32(((const uint16_t *)(const void *)out)[at]);
    return ((const float *)(const void *)out)[at];
}

static void run_one(struct fixture *x, uint32_t layer, uint32_t expert, const struct rows *in,
                    uint32_t m, const uint32_t *index, uint8_t *out)
{
    size_t bytes = x->d * (expert_store_reply_bf16(x->store) ? 2u : 4u);
    void **to = mem_zalloc_array(m, sizeof *to);
    cr_assert(to);
    for (uint32_t i = 0; i < m; i++)
        to[i] = out + i * bytes;
    struct err why = {0};
    struct expert_task task = {.expert = expert, .m = m, .in = in, .row_index = index, .out = to};
    cr_assert_eq(expert_store_run(x->store, layer, &task, 1, x->workers, &why), ERR_OK, "%s",
                 why.text);
    mem_free(to);
}

static void check_against_double(const char *model, const char *quantize, double tolerance)
{
    struct fixture x;
    open_fixture(&x, model, quantize, 1);
    load(&x, 1, 3);
    float values[3 * 64];
    cr_assert_eq(x.d, 64u);
    struct rows in = make_rows(&x, 3, values);
    uint8_t out[2 * 64 * 4];
    run_one(&x, 1, 3, &in, 2, (uint32_t[]){2, 0}, out);
    double worst = 0, size = 0;
    for (uint32_t r = 0; r < 2; r++) {
        double row[64], gate[256], up[256], want[64];
        cr_assert_leq(x.f, 256u);
        for (uint32_t j = 0; j < 64; j++)
            row[j] = (double)values[(r == 0 ? 2 : 0) * 64 + j];
        dense(&x, W_EXPERT_GATE, 1, 3, row, 64, gate, x.f);
        dense(&x, W_EXPERT_UP, 1, 3, row, 64, up, x.f);
        for (uint32_t j = 0; j < x.f; j++)
            gate[j] = gate[j] / (1 + exp(-gate[j])) * up[j];
        dense(&x, W_EXPERT_DOWN, 1, 3, gate, x.f, want, 64);
        for (uint32_t i = 0; i < 64; i++) {
            worst = fmax(worst, fabs((double)result(&x, out, r, i) - want[i]));
            size = fmax(size, fabs(want[i]));
        }
    }
    printf("expert %s %s: worst error %.2g of %.2g\n", model, quantize, worst, size);
    cr_expect_gt(size, 0.1);
    cr_expect_leq(worst, tolerance * size);
    mem_free(in.data);
    close_fixture(&x);
}

Test(experts, compute_the_gated_feed_forward_of_their_rows)
{
    check_against_double("tiny-mixtral", "none", 1e-6);
    check_against_double("tiny-qwen3_moe-bf16", "none",
                         0.01);                         /* two roundings to 8 bits of mantissa */
    check_against_double("tiny-mixtral", "q8_0", 0.03); /* weights and rows of 8 bits */
    check_against_double("tiny-qwen3_moe-bf16", "q8_0", 0.03);
}

/* The bits of a row are its own: alone, among thousands (several pieces and waves), on two threads. */
static void check_many_rows(const char *model, const char *quantize, uint32_t M)
{
    enum { TASKS = 3 };
    struct fixture x;
    open_fixture(&x, model, quantize, 2);
    for (uint32_t e = 0; e < TASKS; e++)
        load(&x, 0, e);
    float *values = mem_zalloc_array((size_t)M * x.d, sizeof *values);
    size_t bytes = x.d * (expert_store_reply_bf16(x.store) ? 2u : 4u);
    uint8_t *out = mem_zalloc_array((size_t)M * TASKS, bytes), *one = mem_zalloc(bytes);
    uint32_t *index = mem_zalloc_array(M, sizeof *index);
    void **to = mem_zalloc_array((size_t)M * TASKS, sizeof *to);
    cr_assert(values && out && one && index && to);
    struct rows in = make_rows(&x, M, values);
    for (uint32_t i = 0; i < M; i++)
        index[i] = M - 1 - i;
    for (uint32_t i = 0; i < M * TASKS; i++)
        to[i] = out + i * bytes;
    struct expert_task tasks[TASKS];
    for (uint32_t e = 0; e < TASKS; e++)
        tasks[e] = (struct expert_task){.expert = e,
                                        .m = e == 1 ? 5 : M,
                                        .in = &in,
                                        .row_index = index,
                                        .out = to + (size_t)e * M};
    struct err why = {0};
    cr_assert_eq(expert_store_run(x.store, 0, tasks, TASKS, x.workers, &why), ERR_OK, "%s",
                 why.text);
    for (uint32_t e = 0; e < TASKS; e++)
        for (uint32_t i = 0; i < tasks[e].m; i += M / 20) {
            run_one(&x, 0, e, &in, 1, &index[i], one);
            cr_expect_eq(memcmp(one, out + ((size_t)e * M + i) * bytes, bytes), 0,
                         "%s %s: expert %u, row %u", model, quantize, e, i);
        }
    mem_free(values);
    mem_free(out);
    mem_free(one);
    mem_free(index);
    mem_free(to);
    mem_free(in.data);
    close_fixture(&x);
}

Test(experts, a_row_has_the_same_bits_alone_and_among_thousands)
{
    check_many_rows("tiny-mixtral", "none", 30000); /* more than one wave */
    check_many_rows("tiny-qwen3_moe-bf16", "none", 2100);
    check_many_rows("tiny-qwen3_moe-bf16", "q8_0", 2100);
}

Test(experts, are_counted_and_freed_with_the_last_reference)
{
    struct fixture x;
    struct err why = {0};
    open_fixture(&x, "tiny-mixtral", "none", 1);
    cr_expect_eq(expert_store_bytes(x.store), 0u);
    load(&x, 1, 2);
    load(&x, 1, 2);
    load(&x, 0, 5);
    cr_expect_eq(expert_store_count(x.store), 2u);
    cr_expect_eq(expert_store_bytes(x.store), 2 * expert_store_bytes_each(x.store, 0));
    cr_expect_geq(expert_store_bytes_each(x.store, 0), 3u * x.d * x.f * 4);
    expert_store_unload(x.store, 1, 2);
    cr_expect(expert_store_holds(x.store, 1, 2));
    expert_store_unload(x.store, 1, 2);
    cr_expect(!expert_store_holds(x.store, 1, 2));
    cr_expect_eq(expert_store_count(x.store), 1u);
    cr_expect(!expert_store_holds(x.store, 7, 0));
    cr_expect(!expert_store_holds(x.store, 0, 6));

    cr_expect_eq(expert_store_load(x.store, 2, 0, x.workers, &why), ERR_NOT_FOUND);
    cr_expect(strstr(why.text, "layer 2") != NULL && strstr(why.text, "2 layers") != NULL, "%s",
              why.text);
    cr_expect_eq(expert_store_load(x.store, 0, 6, x.workers, &why), ERR_NOT_FOUND);
    close_fixture(&x);
}

Test(experts, an_unknown_quantization_is_refused_by_name)
{
    struct fixture x;
    struct err why = {0};
    open_fixture(&x, "tiny-mixtral", "none", 1);
    struct expert_store *store = NULL;
    cr_expect_eq(expert_store_open(x.file, "q3_k", x.k, &store, &why), ERR_INVALID);
    cr_expect(strstr(why.text, "q3_k") != NULL, "%s", why.text);
    cr_expect_null(store);
    close_fixture(&x);
}

/* One expert whose type is not that of its neighbors: the calls that hold several experts have one kind of rows. */
Test(experts, of_a_layer_have_one_type)
{
    static const char *const model = MODELS "tiny-mixtral-bf16";
    const char *const of = "layers.0.block_sparse_moe.experts.3.w2", *const type = "\"BF16\"";
    struct scratch s = scratch_open();
    size_t n;
    char path[600];
    snprintf(path, sizeof path, "%s/model.safetensors", model);
    unsigned char *bytes = read_bytes(path, &n), *at = memmem(bytes, n, of, strlen(of));
    at = memmem(at, n - (size_t)(at - bytes), type, strlen(type));
    memcpy(at, " \"F16\"", strlen(type));
    scratch_write(&s, "model.safetensors", bytes, n);
    scratch_link_model(&s, model);
    free(bytes);

    struct model_file *file = NULL;
    const struct kernels *k = NULL;
    struct expert_store *store = NULL;
    struct err why = {0};
    cr_assert_eq(model_file_open(s.dir, &file, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(kernels_pick(NULL, &k, &why), ERR_OK);
    cr_expect_eq(expert_store_open(file, "none", k, &store, &why), ERR_UNSUPPORTED);
    cr_expect(strstr(why.text, "experts.3.w2.weight' is F16") != NULL &&
                  strstr(why.text, "experts.0.w2.weight' is BF16") != NULL,
              "%s", why.text);
    cr_expect_null(store);
    model_file_close(file);
    scratch_close(&s);
}

Test(experts, every_failed_allocation_is_an_error_and_leaves_the_store_whole)
{
    struct fixture x;
    struct err why = {0};
    open_fixture(&x, "tiny-mixtral", "none", 1);
    float values[64];
    struct rows in = make_rows(&x, 1, values);
    uint8_t out[64 * 4];
    void *to = out;
    uint32_t row = 0, failed = 0;
    struct expert_task task = {.expert = 0, .m = 1, .in = &in, .row_index = &row, .out = &to};
    for (uint64_t n = 1;; n++) {
        struct expert_store *store = NULL;
        mem_fail_at(n);
        enum err_code rc = expert_store_open(x.file, "none", x.k, &store, &why);
        if (rc == ERR_OK) rc = expert_store_load(store, 0, 0, x.workers, &why);
        if (rc == ERR_OK) rc = expert_store_run(store, 0, &task, 1, x.workers, &why);
        mem_fail_at(0);
        if (rc == ERR_OK) {
            expert_store_close(store);
            break;
        }
        cr_expect_eq(rc, ERR_EXHAUSTED, "%s", why.text);
        failed++;
        if (store != NULL &&
            expert_store_holds(store, 0, 0)) /* the same call works once there is memory */
            cr_expect_eq(expert_store_run(store, 0, &task, 1, x.workers, &why), ERR_OK);
        expert_store_close(store);
    }
    cr_expect_geq(failed, 5u);
    mem_free(in.data);
    close_fixture(&x);
}
