#include "coordinator/engine/engine.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/engine/engine_parts.h"

_Static_assert(ENGINE_KV_BLOCK_TOKENS == KV_CACHE_BLOCK_TOKENS, "one block size");

#define MAX_SEQUENCES (1u << 20) /* of max_waiting + max_running: bounds the tables made at open */
#define MAX_ROWS      (1u << 20)

static enum err_code check_cfg(const struct engine_cfg *c, struct err *why)
{
    if (c->n_layers == 0 || c->n_layers > LIMIT_LAYERS)
        return err_set(why, ERR_INVALID, "engine: %u layers, 1 to %u are supported", c->n_layers,
                       LIMIT_LAYERS);
    if (c->ctx == 0 || c->ctx > LIMIT_CONTEXT)
        return err_set(why, ERR_INVALID, "engine: a context of %u tokens, 1 to %u are supported",
                       c->ctx, LIMIT_CONTEXT);
    if (c->ctx > (uint64_t)c->n_kv_blocks * KV_CACHE_BLOCK_TOKENS)
        return err_set(
            why, ERR_INVALID,
            "engine: a context of %u tokens needs %u KV blocks of %u tokens, there are %u", c->ctx,
            kv_cache_blocks(c->ctx), KV_CACHE_BLOCK_TOKENS, c->n_kv_blocks);
    if (c->chunk == 0 || c->max_decode_rows == 0 || c->decode_slots == 0 || c->prefill_slots == 0 ||
        c->max_running == 0 || c->max_waiting == 0 || c->chunk > MAX_ROWS ||
        c->max_decode_rows > MAX_ROWS || c->max_running > MAX_SEQUENCES ||
        c->max_waiting > MAX_SEQUENCES || c->decode_slots > LIMIT_LAYERS ||
        c->prefill_slots > LIMIT_LAYERS)
        return err_set(
            why, ERR_INVALID,
            "engine: chunk %u, %u decode rows, %u + %u slots, %u running, %u waiting: each must be at "
            "least 1 and not absurd",
            c->chunk, c->max_decode_rows, c->decode_slots, c->prefill_slots, c->max_running,
            c->max_waiting);
    if (c->n_encoder_layers >= c->n_layers)
        return err_set(why, ERR_INVALID, "engine: %u of %u layers are the encoder's",
                       c->n_encoder_layers, c->n_layers);
    if (c->n_experts == 0)
        for (uint32_t i = 0; i < c->n_layers; i++)
            if (c->is_moe[i])
                return err_set(why, ERR_INVALID,
                               "engine: layer %u is a MoE layer of a model with 0 experts", i);
    return ERR_OK;
}

static enum err_code open_passes(struct engine *e, struct err *why)
{
    const struct engine_cfg *c = &e->cfg;
    e->n_slots = c->decode_slots + c->prefill_slots;
    e->passes = mem_zalloc_array(e->n_slots, sizeof *e->passes);
    if (e->passes == NULL) return err_nomem(why, "passes");
    for (uint32_t i = 0; i < e->n_slots; i++) {
        bool is_prefill = i >= c->decode_slots;
        enum err_code rc = pass_init(&e->passes[i], i, is_prefill ? c->chunk : c->max_decode_rows,
                                     is_prefill, why);
        if (rc != ERR_OK) return rc;
        e->passes[i].rope_length = c->rope_length;
        e->passes[i].n_layers = c->n_layers;
        e->passes[i].n_encoder_layers = c->n_encoder_layers;
    }
    return ERR_OK;
}

/* Lists of actions and texts that hold whatever one event can cause. */
static enum err_code open_actions(struct engine *e, uint32_t max_rows, struct err *why)
{
    /* Of one pass two EMITs a row (prompt logits, token), a FINISH for everybody, a COMPUTE for every slot. */
    e->cap_actions = 2 * (size_t)max_rows + e->max_sequences + e->n_slots + 64;
    e->actions = mem_zalloc_array(e->cap_actions, sizeof *e->actions);
    e->texts = mem_zalloc_array(e->max_sequences, sizeof *e->texts);
    return e->actions != NULL && e->texts != NULL ? ERR_OK
                                                  : err_nomem(why, "the actions of an engine");
}

enum err_code engine_open(const struct engine_cfg *cfg, struct engine **out, struct err *why)
{
    enum err_code rc = check_cfg(cfg, why);
    if (rc != ERR_OK) return rc;
    struct engine *e = mem_zalloc(sizeof *e);
    if (e == NULL) return err_nomem(why, "an engine");
    e->cfg = *cfg;
    e->deadline_us = UINT64_MAX;
    /* Preempted ones wait beside max_waiting others. */
    e->max_sequences = cfg->max_waiting + cfg->max_running;
    uint32_t max_rows = cfg->chunk > cfg->max_decode_rows ? cfg->chunk : cfg->max_decode_rows;

    rc = scheduler_init(&e->scheduler, cfg, why);
    if (rc != ERR_OK) goto fail;
    e->is_moe = mem_zalloc_array(cfg->n_layers, sizeof *e->is_moe);
    e->eos = mem_zalloc_array((size_t)cfg->n_eos + 1, sizeof *e->eos);
    if (e->is_moe == NULL || e->eos == NULL) {
        rc = err_nomem(why, "an engine");
        goto fail;
    }
    memcpy(e->is_moe, cfg->is_moe, cfg->n_layers * sizeof *e->is_moe);
    if (cfg->n_eos > 0) memcpy(e->eos, cfg->eos, cfg->n_eos * sizeof *e->eos);
    rc = open_passes(e, why);
    if (rc != ERR_OK) goto fail;
    rc = open_actions(e, max_rows, why);
    if (rc != ERR_OK) goto fail;
    rc = sequence_map_init(&e->sequences, e->max_sequences, why);
    if (rc != ERR_OK) goto fail;
    struct dispatch_shape shape = {
        .n_layers = cfg->n_layers,
        .n_experts = cfg->n_experts,
        .top_k = cfg->top_k,
        .decode_slots = cfg->decode_slots,
        .n_slots = e->n_slots,
        .max_rows = max_rows,
    };
    rc = dispatch_open(&cfg->dispatch, &shape, cfg->placement, &e->dispatch, why);
    if (rc != ERR_OK) goto fail;
    e->cfg.is_moe = NULL;
    e->cfg.eos = NULL;
    e->cfg.placement = NULL;
    *out = e;
    return ERR_OK;
fail:
    engine_close(e);
    return err_wrap(why, rc, "open the engine");
}

void engine_close(struct engine *e)
{
    if (e == NULL) return;
    for (uint32_t i = 0; e->sequences.slots != NULL && i <= e->sequences.mask; i++)
        sequence_close(e->sequences.slots[i]);
    for (uint32_t i = 0; e->passes != NULL && i < e->n_slots; i++) {
        for (uint32_t k = 0; k < e->passes[i].n_parts; k++)
            if (e->passes[i].parts[k].dead) sequence_close(e->passes[i].parts[k].sequence);
        pass_deinit(&e->passes[i]);
    }
    mem_free(e->passes);
    sequence_map_deinit(&e->sequences);
    dispatch_close(e->dispatch);
    scheduler_deinit(&e->scheduler);
    mem_free(e->is_moe);
    mem_free(e->eos);
    mem_free(e->actions);
    mem_free(e->texts);
    mem_free(e);
}

/* ---- events ------------------------------------------------------------------------------------ */

/* What only an encoder-decoder model asks of a prompt. */
static enum err_code check_encoder(const struct engine *e, const struct engine_event *ev,
                                   struct err *why)
{
    if (e->cfg.n_encoder_layers == 0) return ERR_OK;
    if (ev->submit.n_prompt < 2)
        return err_set(why, ERR_INVALID, "the prompt has no tokens for the encoder");
    if (ev->submit.n_prompt - 1 > e->cfg.chunk)
        return err_set(
            why, ERR_CONTEXT,
            "a prompt of %u tokens goes through the encoder at once, which has room for %u",
            ev->submit.n_prompt - 1, e->cfg.chunk);
    if (ev->submit.prompt_logits)
        return err_set(why, ERR_INVALID,
                       "an encoder gives no logits: there are no log-probabilities of a prompt");
    return ERR_OK;
}

static enum err_code submit(struct engine *e, const struct engine_event *ev, struct err *why)
{
    uint64_t id = ev->submit.sequence,
             total = (uint64_t)ev->submit.n_prompt + ev->submit.max_tokens;
    if (ev->submit.n_prompt == 0) return err_set(why, ERR_INVALID, "the prompt has no tokens");
    if (total > e->cfg.ctx)
        return err_set(why, ERR_CONTEXT,
                       "prompt and output of %u + %u = %llu tokens do not fit in the context of %u",
                       ev->submit.n_prompt, ev->submit.max_tokens, (unsigned long long)total,
                       e->cfg.ctx);
    enum err_code rc = check_encoder(e, ev, why);
    if (rc != ERR_OK) return rc;
    if (sequence_map_find(&e->sequences, id) != NULL)
        return err_set(why, ERR_INVALID, "sequence %llu is in use", (unsigned long long)id);
    if (e->scheduler.n_waiting >= e->cfg.max_waiting || e->sequences.n >= e->max_sequences)
        return err_set(why, ERR_EXHAUSTED, "%u requests are waiting, the queue holds %u",
                       e->scheduler.n_waiting, e->cfg.max_waiting);
    struct sequence *q = sequence_open(ev, e->last_age + 1);
    if (q == NULL) return err_nomem(why, "a sequence");
    if (e->cfg.n_encoder_layers > 0) q->n_encoder = q->n_prompt - 1;
    e->last_age++;
    sequence_map_add(&e->sequences, q);
    scheduler_submit(&e->scheduler, q);
    if (q->deadline_us < e->deadline_us) e->deadline_us = q->deadline_us;
    e->look = true;
    return ERR_OK;
}

static enum err_code computed(struct engine *e, const struct engine_event *ev, struct err *why)
{
    uint32_t slot = ev->computed.slot;
    if (slot >= e->n_slots || e->passes[slot].state != PASS_COMPUTING)
        return err_set(why, ERR_INTERNAL, "slot %u of %u computes nothing", slot, e->n_slots);
    struct pass *p = &e->passes[slot];
    bool is_moe = p->job.first_layer <= p->job.last_layer && e->is_moe[p->job.last_layer];
    if ((is_moe && ev->computed.experts == NULL) || (p->job.head && ev->computed.tokens == NULL))
        return err_set(why, ERR_INTERNAL, "slot %u: the job of layers %d to %d brought no %s", slot,
                       p->job.first_layer, p->job.last_layer, is_moe ? "routing" : "tokens");
    engine_computed(e, p, ev);
    return ERR_OK;
}

static enum err_code set_paused(struct engine *e, uint64_t id, bool paused)
{
    struct sequence *q = sequence_map_find(&e->sequences, id);
    if (q == NULL) return ERR_OK; /* it has just ended */
    q->paused = paused;
    e->look = true;
    return ERR_OK;
}

static enum err_code node_event(struct engine *e, const struct engine_event *ev, struct err *why)
{
    if (ev->node.node >= e->cfg.dispatch.n_nodes || (unsigned)ev->node.lane >= DISPATCH_N_LANES)
        return err_set(why, ERR_INTERNAL, "node %u of %u, lane %u", ev->node.node,
                       e->cfg.dispatch.n_nodes, (unsigned)ev->node.lane);
    if (ev->kind == ENGINE_NODE_UP)
        dispatch_node_up(e->dispatch, e->now_us, ev->node.node, ev->node.lane);
    else
        dispatch_node_down(e->dispatch, e->now_us, ev->node.node, ev->node.lane);
    return ERR_OK;
}

static enum err_code take(struct engine *e, const struct engine_event *ev, struct err *why)
{
    switch (ev->kind) {
    case ENGINE_SUBMIT:
        return submit(e, ev, why);
    case ENGINE_CANCEL: {
        struct sequence *q = sequence_map_find(&e->sequences, ev->sequence);
        if (q != NULL) engine_leave(e, q);
        return ERR_OK;
    }
    case ENGINE_PAUSE:
    case ENGINE_RESUME:
        return set_paused(e, ev->sequence, ev->kind == ENGINE_PAUSE);
    case ENGINE_COMPUTED:
        return computed(e, ev, why);
    case ENGINE_REPLY:
        dispatch_reply(e->dispatch, e->now_us, ev->reply.step);
        return ERR_OK;
    case ENGINE_STEP_FAILED:
        dispatch_failed(e->dispatch, e->now_us, ev->reply.step);
        return ERR_OK;
    case ENGINE_NODE_UP:
    case ENGINE_NODE_DOWN:
        return node_event(e, ev, why);
    case ENGINE_PLACEMENT:
        return dispatch_set_placement(e->dispatch, e->now_us, ev->placement, why);
    case ENGINE_TICK:
        return ERR_OK;
    }
    return err_set(why, ERR_INTERNAL, "event of kind %d", (int)ev->kind);
}

enum err_code engine_step(struct engine *e, const struct engine_event *ev,
                          struct engine_actions *todo, struct err *why)
{
    if (ev->now_us > e->now_us) e->now_us = ev->now_us;
    e->n_actions = 0;
    e->n_texts = 0;
    enum err_code rc = take(e, ev, why);
    if (rc == ERR_OK)
        engine_progress(e); /* else there is nothing to do, so that a caller may look at rc alone */
    *todo = (struct engine_actions){.items = e->actions, .n = e->n_actions};
    return rc;
}

/* ---- questions --------------------------------------------------------------------------------- */

uint64_t engine_next_timer_us(const struct engine *e)
{
    if (dispatch_has_sends(e->dispatch)) return e->now_us;
    uint64_t t = dispatch_next_timer_us(e->dispatch);
    return t < e->deadline_us ? t : e->deadline_us;
}

const struct engine_row *engine_rows(const struct engine *e, uint32_t slot, uint32_t *n)
{
    assert(slot < e->n_slots);
    *n = e->passes[slot].n_rows;
    return e->passes[slot].rows;
}

const struct dispatch_step *engine_find_step(const struct engine *e, uint64_t step)
{
    return dispatch_find(e->dispatch, step);
}

void engine_stats(const struct engine *e, struct engine_stats *out)
{
    *out = (struct engine_stats){
        .waiting = e->scheduler.n_waiting,
        .running = e->scheduler.n_running,
        .kv_blocks = e->scheduler.kv.n_blocks,
        .kv_blocks_used = e->scheduler.kv.n_blocks - e->scheduler.kv.n_free,
        .preemptions = e->scheduler.preemptions,
        .tokens_prefilled = e->tokens_prefilled,
        .tokens_decoded = e->tokens_decoded,
    };
    for (uint32_t i = 0; i < e->n_slots; i++) {
        out->passes += e->passes[i].state != PASS_FREE;
        out->passes_waiting_for_experts += e->passes[i].state == PASS_WAITING_FOR_EXPERTS;
    }
    for (uint32_t i = 0; i <= e->sequences.mask; i++)
        out->paused += e->sequences.slots[i] != NULL && e->sequences.slots[i]->paused;
}

const struct dispatch *engine_dispatch(const struct engine *e)
{
    return e->dispatch;
}
