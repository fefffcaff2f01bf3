/* one_process.h - a whole model in one process, for golden and equality tests: coordinator arithmetic and all
 * experts, prompts in chunks, greedy decoding. Everything fails by Criterion assertion. Header only, because the
 * support library links nothing of the model. A test that includes it links: model. */
#ifndef TESTS_SUPPORT_ONE_PROCESS_H
#define TESTS_SUPPORT_ONE_PROCESS_H

#include <criterion/criterion.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/experts/experts.h"
#include "coordinator/model/model.h"

struct one_process {
    struct model_file *file;
    const struct kernels *kernels;
    struct workers *workers;
    struct model *model;
    struct expert_store *experts;
    struct kv_store *kv;
    struct model_pass *pass;
    uint32_t max_rows, n_blocks, used_blocks;
    uint32_t *row_index;       /* [max_rows * top_k] */
    void **out;                /* [max_rows * top_k] */
    struct expert_task *tasks; /* [E] */
};

struct one_cfg {
    const char *path;
    const char *quantize; /* NULL: none */
    const char *kernels;  /* NULL: the best */
    unsigned threads;     /* 0: 1 */
    uint32_t max_rows, n_blocks;
};

/* A sequence and its blocks. */
struct one_sequence {
    uint32_t blocks[64];
    uint32_t position; /* tokens in the cache */
};

/* Called after the attention part and after the end of each layer; may be NULL. */
struct one_observer {
    void (*routed)(void *ctx, const struct one_process *o, uint32_t layer);
    void (*layer_done)(void *ctx, const struct one_process *o, uint32_t layer);
    void *ctx;
};

static inline void one_open(struct one_process *o, const struct one_cfg *cfg)
{
    struct err why = {0};
    memset(o, 0, sizeof *o);
    cr_assert_eq(model_file_open(cfg->path, &o->file, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(kernels_pick(cfg->kernels, &o->kernels, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(workers_open(cfg->threads ? cfg->threads : 1, 200, &o->workers, &why), ERR_OK,
                 "%s", why.text);
    cr_assert_eq(model_open(o->file, cfg->quantize, o->kernels, o->workers, &o->model, &why),
                 ERR_OK, "%s", why.text);
    cr_assert_eq(expert_store_open(o->file, cfg->quantize, o->kernels, &o->experts, &why), ERR_OK,
                 "%s", why.text);
    const struct hparams *hp = model_hparams(o->model);
    for (uint32_t l = 0; l < hp->n_layers; l++)
        for (uint32_t e = 0; hp->is_moe[l] && e < hp->n_experts; e++)
            cr_assert_eq(expert_store_load(o->experts, l, e, o->workers, &why), ERR_OK, "%s",
                         why.text);
    o->max_rows = cfg->max_rows;
    o->n_blocks = cfg->n_blocks;
    cr_assert_eq(kv_store_open(o->model, o->n_blocks, &o->kv, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(model_pass_open(o->model, o->max_rows, o->max_rows, &o->pass, &why), ERR_OK, "%s",
                 why.text);
    size_t n = (size_t)o->max_rows * (hp->top_k ? hp->top_k : 1);
    o->row_index = mem_zalloc_array(n, sizeof *o->row_index);
    o->out = mem_zalloc_array(n, sizeof *o->out);
    o->tasks = mem_zalloc_array(hp->n_experts ? hp->n_experts : 1, sizeof *o->tasks);
    cr_assert(o->row_index && o->out && o->tasks);
}

static inline void one_close(struct one_process *o)
{
    mem_free(o->row_index);
    mem_free(o->out);
    mem_free(o->tasks);
    model_pass_close(o->pass);
    kv_store_close(o->kv);
    expert_store_close(o->experts);
    model_close(o->model);
    workers_close(o->workers);
    model_file_close(o->file);
}

/* Blocks for `tokens`, highest numbers first, so that a block's number says nothing about its place. */
static inline struct one_sequence one_sequence(struct one_process *o, uint32_t tokens)
{
    struct one_sequence s = {.position = 0};
    uint32_t n = (tokens + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    cr_assert(n <= sizeof s.blocks / sizeof s.blocks[0] && o->used_blocks + n <= o->n_blocks);
    for (uint32_t i = 0; i < n; i++)
        s.blocks[i] = o->n_blocks - ++o->used_blocks;
    return s;
}

static inline void one_run_experts(struct one_process *o, uint32_t layer, uint32_t n)
{
    const struct hparams *hp = model_hparams(o->model);
    const uint16_t *ids = model_pass_experts(o->pass);
    uint8_t *results = model_pass_results(o->pass);
    size_t bytes = (size_t)hp->hidden * (model_reply_bf16(o->model) ? 2 : 4);
    uint32_t used = 0, n_tasks = 0;
    for (uint32_t e = 0; e < hp->n_experts; e++) {
        uint32_t first = used;
        for (uint32_t i = 0; i < n * hp->top_k; i++) {
            if (ids[i] != e) continue;
            o->row_index[used] = i / hp->top_k;
            o->out[used++] = results + i * bytes;
        }
        if (used == first) continue;
        o->tasks[n_tasks++] = (struct expert_task){.expert = e,
                                                   .m = used - first,
                                                   .in = model_pass_expert_rows(o->pass),
                                                   .row_index = o->row_index + first,
                                                   .out = o->out + first};
    }
    struct err why = {0};
    cr_assert_eq(expert_store_run(o->experts, layer, o->tasks, n_tasks, o->workers, &why), ERR_OK,
                 "%s", why.text);
}

static inline void one_pass(struct one_process *o, const struct model_row *rows, uint32_t n,
                            const struct one_observer *see)
{
    const struct hparams *hp = model_hparams(o->model);
    const bool encodes = rows[0].position < rows[0].n_encoder;
    const uint32_t end = encodes ? hp->n_encoder_layers : hp->n_layers;
    model_begin(o->pass, rows, n);
    for (uint32_t l = encodes ? 0 : hp->n_encoder_layers; l < end; l++) {
        model_attention(o->pass, o->kv, l, o->workers);
        if (see && see->routed && hp->is_moe[l]) see->routed(see->ctx, o, l);
        if (hp->is_moe[l]) {
            one_run_experts(o, l, n);
            model_combine(o->pass, l, o->workers);
        }
        if (see && see->layer_done) see->layer_done(see->ctx, o, l);
    }
    if (encodes)
        model_encoder_end(o->pass, o->kv, o->workers);
    else
        model_head(o->pass, o->workers);
}

/* Run n tokens of one sequence in one pass; logits [n, V] are left in the pass when all_logits, else the last row's. */
static inline void one_feed(struct one_process *o, struct one_sequence *s, const int32_t *ids,
                            uint32_t n, bool all_logits, const struct one_observer *see)
{
    cr_assert_leq(n, o->max_rows);
    struct model_row *rows = mem_zalloc_array(n, sizeof *rows);
    cr_assert(rows);
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (struct model_row){.token = ids[i],
                                     .position = s->position + i,
                                     .blocks = s->blocks,
                                     .wants_logits = all_logits || i + 1 == n};
    one_pass(o, rows, n, see);
    s->position += n;
    mem_free(rows);
}

/* The whole prompt in chunks; logits [n, V] into `logits`. */
static inline void one_prompt(struct one_process *o, struct one_sequence *s, const int32_t *ids,
                              uint32_t n, uint32_t chunk, float *logits)
{
    const uint32_t vocab = model_hparams(o->model)->vocab;
    for (uint32_t at = 0; at < n; at += chunk) {
        uint32_t m = n - at < chunk ? n - at : chunk;
        one_feed(o, s, ids + at, m, true, NULL);
        for (uint32_t i = 0; i < m; i++)
            memcpy(logits + (size_t)(at + i) * vocab, model_pass_logits(o->pass, i),
                   vocab * sizeof *logits);
    }
}

static inline int32_t one_best(const float *logits, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* Decode n tokens, one per pass, from the logits that the last pass left (its row `logit_row`). */
static inline void one_greedy(struct one_process *o, struct one_sequence *s, uint32_t logit_row,
                              int32_t *out, uint32_t n)
{
    const uint32_t vocab = model_hparams(o->model)->vocab;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = one_best(model_pass_logits(o->pass, i == 0 ? logit_row : 0), vocab);
        if (i + 1 < n) one_feed(o, s, &out[i], 1, false, NULL);
    }
}

#endif
