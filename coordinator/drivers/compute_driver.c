#include "coordinator/drivers/compute_driver.h"

#include <assert.h>

#include "common/base/mem.h"

#define LOGIT_ROWS 64u

struct slot {
    struct model_pass *pass;
    struct engine_token *tokens;
    uint32_t max_rows, max_logits;
};

struct compute_driver {
    struct compute_cfg cfg;
    struct kv_store *kv;
    struct slot *slots;
    struct model_row *rows; /* [most rows of a slot] while a pass begins */
    int *bad;
    void *sampler_scratch;
    uint32_t n_slots, top_k;
};

static uint32_t slot_rows(const struct compute_cfg *c, uint32_t slot)
{
    return slot < c->decode_slots ? c->max_decode_rows : c->chunk;
}

uint32_t compute_driver_logit_rows(const struct compute_cfg *c)
{
    return c->chunk < LOGIT_ROWS ? c->chunk : LOGIT_ROWS;
}

static uint32_t slot_logit_rows(const struct compute_cfg *c, uint32_t slot)
{
    return slot < c->decode_slots ? c->max_decode_rows : compute_driver_logit_rows(c);
}

size_t compute_driver_bytes(const struct compute_cfg *c)
{
    size_t bytes = (size_t)c->n_kv_blocks * model_kv_block_bytes(c->model);
    for (uint32_t i = 0; i < c->decode_slots + c->prefill_slots; i++)
        bytes += model_pass_bytes(c->model, slot_rows(c, i), slot_logit_rows(c, i));
    return bytes;
}

enum err_code compute_driver_open(const struct compute_cfg *cfg, struct compute_driver **out,
                                  struct err *why)
{
    struct compute_driver *d = mem_zalloc(sizeof *d);
    if (d == NULL) return err_nomem(why, "compute driver");
    const struct hparams *hp = model_hparams(cfg->model);
    d->cfg = *cfg;
    d->n_slots = cfg->decode_slots + cfg->prefill_slots;
    d->top_k = hp->top_k;
    uint32_t most = cfg->chunk > cfg->max_decode_rows ? cfg->chunk : cfg->max_decode_rows;
    d->slots = mem_zalloc_array(d->n_slots, sizeof *d->slots);
    d->rows = mem_zalloc_array(most, sizeof *d->rows);
    d->bad = mem_zalloc_array(most, sizeof *d->bad);
    d->sampler_scratch = mem_aligned(64, sampler_scratch_bytes(hp->vocab));
    enum err_code rc = ERR_OK;
    if (d->slots == NULL || d->rows == NULL || d->bad == NULL || d->sampler_scratch == NULL)
        rc = err_nomem(why, "compute driver");
    if (rc == ERR_OK) rc = kv_store_open(cfg->model, cfg->n_kv_blocks, &d->kv, why);
    for (uint32_t i = 0; i < d->n_slots && rc == ERR_OK; i++) {
        struct slot *s = &d->slots[i];
        s->max_rows = slot_rows(cfg, i);
        s->max_logits = slot_logit_rows(cfg, i);
        s->tokens = mem_zalloc_array(s->max_logits, sizeof *s->tokens);
        rc = s->tokens == NULL
                 ? err_nomem(why, "compute driver")
                 : model_pass_open(cfg->model, s->max_rows, s->max_logits, &s->pass, why);
    }
    if (rc != ERR_OK) {
        compute_driver_close(d);
        return rc;
    }
    *out = d;
    return ERR_OK;
}

void compute_driver_close(struct compute_driver *d)
{
    if (d == NULL) return;
    for (uint32_t i = 0; d->slots != NULL && i < d->n_slots; i++) {
        model_pass_close(d->slots[i].pass);
        mem_free(d->slots[i].tokens);
    }
    kv_store_close(d->kv);
    mem_free(d->slots);
    mem_free(d->rows);
    mem_free(d->bad);
    mem_free(d->sampler_scratch);
    mem_free(d);
}

struct model_pass *compute_driver_pass(struct compute_driver *d, uint32_t slot)
{
    assert(slot < d->n_slots);
    return d->slots[slot].pass;
}

bool compute_driver_reply_bf16(const struct compute_driver *d)
{
    return model_reply_bf16(d->cfg.model);
}

static void sample(struct compute_driver *d, struct slot *s, const struct engine_row *rows,
                   uint32_t n, const struct client_driver *clients)
{
    uint32_t logit_row = 0, vocab = model_hparams(d->cfg.model)->vocab;
    for (uint32_t r = 0; r < n; r++) {
        if (!rows[r].wants_logits) continue;
        const struct client_sequence *facts =
            rows[r].dead ? NULL : client_driver_find(clients, rows[r].sequence);
        struct engine_token *t = &s->tokens[logit_row];
        *t = (struct engine_token){0};
        if (facts != NULL && rows[r].samples) {
            struct sampler_pick pick;
            const float *logits = model_pass_logits(s->pass, logit_row);
            t->bad = sampler_pick(d->cfg.kernels, logits, vocab, &facts->sampling,
                                  &(struct token_history){rows[r].tokens, rows[r].n_prompt,
                                                          rows[r].n_prompt + rows[r].output_index},
                                  rows[r].output_index, d->sampler_scratch, &pick) != 0;
            if (!t->bad) t->token = pick.token;
        }
        logit_row++;
    }
}

void compute_driver_run(struct compute_driver *d, const struct engine *e,
                        const struct engine_job *job, const struct client_driver *clients,
                        struct engine_event *done)
{
    struct slot *s = &d->slots[job->slot];
    uint32_t n;
    const struct engine_row *rows = engine_rows(e, job->slot, &n);
    assert(n <= s->max_rows);
    if (job->begin) {
        for (uint32_t r = 0; r < n; r++)
            d->rows[r] = (struct model_row){.token = rows[r].token,
                                            .position = rows[r].position,
                                            .blocks = rows[r].blocks,
                                            .wants_logits = rows[r].wants_logits,
                                            .n_encoder = rows[r].n_encoder,
                                            .beyond = rows[r].beyond};
        model_begin(s->pass, d->rows, n);
    }
    if (job->combine_layer >= 0)
        model_combine(s->pass, (uint32_t)job->combine_layer, d->cfg.workers);
    for (int l = job->first_layer; l <= job->last_layer; l++)
        model_attention(s->pass, d->kv, (uint32_t)l, d->cfg.workers);
    if (job->head && rows[0].position < rows[0].n_encoder)
        model_encoder_end(s->pass, d->kv, d->cfg.workers);
    else if (job->head) {
        model_head(s->pass, d->cfg.workers);
        sample(d, s, rows, n, clients);
    }
    for (uint32_t r = 0; r < n; r++)
        d->bad[r] = model_pass_bad_layer(s->pass, r);
    *done = (struct engine_event){.kind = ENGINE_COMPUTED,
                                  .computed = {.slot = job->slot,
                                               .experts = model_pass_experts(s->pass),
                                               .bad_layer = d->bad,
                                               .tokens = s->tokens}};
}

void compute_driver_shared(struct compute_driver *d, const struct engine_job *job)
{
    const struct hparams *hp = model_hparams(d->cfg.model);
    if (job->first_layer > job->last_layer || !hp->is_moe[job->last_layer]) return;
    model_shared(d->slots[job->slot].pass, (uint32_t)job->last_layer, d->cfg.workers);
}

void compute_driver_logprobs(struct compute_driver *d, uint32_t slot, uint32_t logit_row,
                             int32_t token, uint32_t n_top, struct generation_event *ev)
{
    const float *logits = model_pass_logits(d->slots[slot].pass, logit_row);
    uint32_t vocab = model_hparams(d->cfg.model)->vocab;
    if (token >= 0) {
        ev->has_logprob = true;
        ev->logprob = sampler_logprob(d->cfg.kernels, logits, vocab, token);
    }
    if (n_top > vocab) n_top = vocab; /* small test models */
    if (n_top == 0) return;
    int32_t ids[LIMIT_TOP_LOGPROBS];
    float values[LIMIT_TOP_LOGPROBS];
    sampler_top(d->cfg.kernels, logits, vocab, n_top, ids, values);
    ev->n_top = n_top;
    for (uint32_t i = 0; i < n_top; i++)
        ev->top[i] = (struct generation_logprob){ids[i], values[i]};
}
