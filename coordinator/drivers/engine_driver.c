#include "coordinator/drivers/engine_driver.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "coordinator/drivers/engine_metrics.h"

#define IDLE_WAIT_US 100000u /* the longest wait for the network without a timer */

struct engine_driver {
    struct engine_driver_cfg cfg;
    struct rpc *rpc;
    struct engine *engine;
    struct compute_driver *compute;
    struct node_driver *nodes;
    struct client_driver *clients;
    pthread_t thread;
    bool started;
    _Atomic bool stop;

    struct engine_job *jobs; /* [n_slots], those with `waiting` set */
    bool *job_waiting;
    uint32_t n_slots;
    uint64_t *
        unsent; /* [cap_unsent] steps that could not be sent: told to the engine after its actions */
    size_t n_unsent, cap_unsent;
    bool is_ready, was_ready;
    struct engine_metrics published;
    char reason[256];
};

/* ---- actions ---------------------------------------------------------------------------------- */

static void emit(struct engine_driver *d, const struct engine_action *a)
{
    const struct client_sequence *facts = client_driver_find(d->clients, a->emit.sequence);
    if (facts == NULL) return; /* the client has left */
    struct generation_event ev = {.index = a->emit.index, .token = a->emit.token};
    if (!a->emit.is_prompt) {
        ev.kind = GENERATION_TOKEN;
        if (facts->logprobs)
            compute_driver_logprobs(d->compute, a->emit.slot, a->emit.logit_row, a->emit.token,
                                    facts->top_logprobs, &ev);
        client_driver_post(d->clients, a->emit.sequence, &ev, NULL);
        return;
    }
    /* The logits of position i give the logprob of prompt token i + 1; the first token has none. */
    ev.kind = GENERATION_PROMPT;
    if (a->emit.index == 0) {
        struct generation_event first = {.kind = GENERATION_PROMPT, .index = 0, .token = -1};
        client_driver_post(d->clients, a->emit.sequence, &first, NULL);
    }
    if (a->emit.token < 0) return;
    ev.index = a->emit.index + 1;
    compute_driver_logprobs(d->compute, a->emit.slot, a->emit.logit_row, a->emit.token,
                            facts->top_logprobs, &ev);
    client_driver_post(d->clients, a->emit.sequence, &ev, NULL);
}

static void finish(struct engine_driver *d, const struct engine_action *a)
{
    struct generation_event ev = {.kind = GENERATION_FINISHED};
    struct err why = {0};
    if (a->finish.reason == ENGINE_FINISH_FAILED) {
        ev.kind = GENERATION_FAILED;
        err_set(&why, a->finish.code, "%s", a->finish.text);
        log_warn("engine", "sequence=%llx err=%s msg=\"%s\"",
                 (unsigned long long)a->finish.sequence, err_name(a->finish.code), a->finish.text);
    } else {
        ev.stopped_by_eos = a->finish.reason == ENGINE_FINISH_EOS;
    }
    client_driver_post(d->clients, a->finish.sequence, &ev, &why);
}

/* The list of actions is valid until the next engine_step: a step that cannot be sent is only noted here. */
static void note_unsent(struct engine_driver *d, uint64_t step)
{
    if (d->n_unsent == d->cap_unsent) {
        size_t cap = d->cap_unsent > 0 ? 2 * d->cap_unsent : 16;
        uint64_t *more = mem_realloc(d->unsent, cap * sizeof *more);
        if (more == NULL)
            return; /* to the engine the node is silent, then: it asks elsewhere after a while */
        d->unsent = more;
        d->cap_unsent = cap;
    }
    d->unsent[d->n_unsent++] = step;
}

static void carry_out(struct engine_driver *d, const struct engine_actions *todo)
{
    for (size_t i = 0; i < todo->n; i++) {
        const struct engine_action *a = &todo->items[i];
        switch (a->kind) {
        case ENGINE_ACT_COMPUTE:
            d->jobs[a->compute.slot] = a->compute;
            d->job_waiting[a->compute.slot] = true;
            break;
        case ENGINE_ACT_SEND:
            if (!node_driver_send(d->nodes, a->send)) note_unsent(d, a->send->id);
            break;
        case ENGINE_ACT_EMIT:
            emit(d, a);
            break;
        case ENGINE_ACT_FINISH:
            finish(d, a);
            break;
        }
    }
}

/* Events may come from callbacks while a job computes, never from inside engine_step or carry_out. */
static enum err_code step(struct engine_driver *d, struct engine_event *ev, struct err *why)
{
    ev->now_us = clock_now_us();
    struct engine_actions todo;
    enum err_code rc = engine_step(d->engine, ev, &todo, why);
    if (rc != ERR_OK) return rc;
    carry_out(d, &todo);
    while (d->n_unsent > 0) { /* ends: the engine asks every replica once, then waits */
        struct engine_event failed = {
            .kind = ENGINE_STEP_FAILED,
            .now_us = ev->now_us,
            .reply = {.step = d->unsent[--d->n_unsent], .why = "could not be sent"}};
        if (engine_step(d->engine, &failed, &todo, NULL) == ERR_OK) carry_out(d, &todo);
    }
    return ERR_OK;
}

static void give(struct engine_driver *d, struct engine_event *ev)
{
    struct err why;
    enum err_code rc = step(d, ev, &why);
    if (rc != ERR_OK) log_error("engine", "err=%s msg=\"%s\"", err_name(rc), why.text);
}

static void node_event(void *ctx, const struct engine_event *ev)
{
    struct engine_event copy = *ev;
    give(ctx, &copy);
}

static const struct engine *the_engine(void *ctx)
{
    return ((struct engine_driver *)ctx)->engine;
}

/* ---- readiness -------------------------------------------------------------------------------- */

static void node_changed(void *ctx, uint32_t node, bool usable, const char *reason)
{
    struct engine_driver *d = ctx;
    if (d->cfg.node_changed != NULL) d->cfg.node_changed(d->cfg.callback_ctx, node, usable, reason);
    char text[sizeof d->reason] = "";
    bool ready = node_driver_complete(d->nodes, text, sizeof text);
    /* Once ready, requests are taken even when an expert has no node for now: they wait for it (promise 4).
     * /readyz tells load balancers the truth. */
    bool changed = ready != d->is_ready;
    d->is_ready = ready;
    memcpy(d->reason, text, sizeof text);
    d->was_ready |= ready;
    if (d->clients != NULL) client_driver_set_ready(d->clients, ready, d->was_ready, text);
    if (changed && d->cfg.ready_changed != NULL) d->cfg.ready_changed(d->cfg.callback_ctx, ready);
}

/* ---- orders from the loop --------------------------------------------------------------------- */

static void answer_cluster(struct engine_driver *d)
{
    struct engine_stats s;
    engine_stats(d->engine, &s);
    json_t *engine =
        json_pack("{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:I,s:I,s:I,s:I}", "waiting", s.waiting, "running",
                  s.running, "paused", s.paused, "passes", s.passes, "passes_waiting_for_experts",
                  s.passes_waiting_for_experts, "kv_blocks", s.kv_blocks, "kv_blocks_used",
                  s.kv_blocks_used, "preemptions", (json_int_t)s.preemptions, "tokens_prefilled",
                  (json_int_t)s.tokens_prefilled, "tokens_decoded", (json_int_t)s.tokens_decoded,
                  "rows_replayed", (json_int_t)dispatch_replays(engine_dispatch(d->engine)));
    json_t *all = json_pack("{s:b,s:o*,s:o*,s:o*}", "ready", d->is_ready, "engine", engine, "nodes",
                            node_driver_nodes_json(d->nodes), "placement",
                            node_driver_placement_json(d->nodes));
    if (all != NULL && !d->is_ready)
        json_object_set_new(all, "reasons", json_pack("[s]", d->reason));
    char *text = all != NULL ? json_to_text(all) : NULL;
    json_decref(all);
    client_driver_answer_cluster(d->clients, text);
}

/* An encoder-decoder model's prompt ends with the token that the decoder begins with. NULL: no memory. */
static int32_t *with_decoder_start(const struct hparams *hp, const struct generation_spec *s)
{
    int32_t *prompt = mem_alloc(((size_t)s->n_prompt + 1) * sizeof *prompt);
    if (prompt == NULL) return NULL;
    memcpy(prompt, s->prompt, s->n_prompt * sizeof *prompt);
    prompt[s->n_prompt] = hp->decoder_start;
    return prompt;
}

static void submit(struct engine_driver *d, const struct client_order *o)
{
    const struct generation_spec *s = o->spec;
    const struct hparams *hp = model_hparams(d->cfg.model);
    int32_t *longer = hp->n_encoder_layers > 0 ? with_decoder_start(hp, s) : NULL;
    struct engine_event ev = {
        .kind = ENGINE_SUBMIT,
        .submit = {.sequence = o->sequence,
                   .prompt = longer != NULL ? longer : s->prompt,
                   .n_prompt = s->n_prompt + (longer != NULL),
                   .max_tokens = s->max_tokens,
                   .ignore_eos = s->ignore_eos,
                   .prompt_logits = s->prompt_logprobs,
                   .deadline_us = o->submitted_us + (uint64_t)s->deadline_ms * 1000}};
    struct err why;
    enum err_code rc = hp->n_encoder_layers > 0 && longer == NULL ? err_nomem(&why, "the prompt")
                                                                  : step(d, &ev, &why);
    mem_free(longer);
    if (rc == ERR_OK) return;
    struct generation_event failed = {.kind = GENERATION_FAILED};
    client_driver_post(d->clients, o->sequence, &failed, &why);
}

static void take_order(void *ctx, const struct client_order *o)
{
    struct engine_driver *d = ctx;
    static const enum engine_event_kind kinds[] = {[CLIENT_CANCEL] = ENGINE_CANCEL,
                                                   [CLIENT_PAUSE] = ENGINE_PAUSE,
                                                   [CLIENT_RESUME] = ENGINE_RESUME};
    switch (o->kind) {
    case CLIENT_SUBMIT:
        submit(d, o);
        break;
    case CLIENT_CLUSTER:
        answer_cluster(d);
        break;
    case CLIENT_CANCEL:
    case CLIENT_PAUSE:
    case CLIENT_RESUME: {
        struct engine_event ev = {.kind = kinds[o->kind], .sequence = o->sequence};
        give(d, &ev);
        break;
    }
    }
}

/* ---- the thread ------------------------------------------------------------------------------- */

/* Run the next waiting job, decode slots first; false if there is none. */
static bool run_job(struct engine_driver *d)
{
    for (uint32_t i = 0; i < d->n_slots; i++) {
        if (!d->job_waiting[i]) continue;
        d->job_waiting[i] = false;
        struct engine_event done;
        compute_driver_run(d->compute, d->engine, &d->jobs[i], d->clients, &done);
        give(d, &done);
        /* The rows are on their way: what every row takes is computed meanwhile. */
        if (!d->job_waiting[i]) compute_driver_shared(d->compute, &d->jobs[i]);
        return true;
    }
    return false;
}

static void poll_network(struct engine_driver *d, uint64_t timeout_us)
{
    rpc_poll(d->rpc, timeout_us);
    if (d->cfg.after_poll != NULL) d->cfg.after_poll(d->cfg.callback_ctx);
}

static void pump(void *ctx)
{
    poll_network(ctx, 0);
}

static void *thread_main(void *arg)
{
    struct engine_driver *d = arg;
    while (!atomic_load(&d->stop)) {
        client_driver_orders(d->clients, take_order, d);
        uint64_t now = clock_now_us(), timer = engine_next_timer_us(d->engine);
        if (now >= timer) {
            struct engine_event tick = {.kind = ENGINE_TICK};
            give(d, &tick);
            timer = engine_next_timer_us(d->engine);
        }
        engine_metrics_publish(&d->published, d->cfg.metrics, d->engine, d->nodes, now);
        node_driver_retry(d->nodes);
        if (run_job(d) || node_driver_run_local(d->nodes)) {
            poll_network(d, 0);
            continue;
        }
        uint64_t wait = timer <= now ? 0 : timer - now;
        poll_network(d, wait < IDLE_WAIT_US ? wait : IDLE_WAIT_US);
    }
    return NULL;
}

static struct compute_cfg compute_cfg(const struct engine_driver_cfg *cfg)
{
    return (struct compute_cfg){cfg->model,           cfg->kernels,      cfg->workers,
                                cfg->n_kv_blocks,     cfg->decode_slots, cfg->prefill_slots,
                                cfg->max_decode_rows, cfg->chunk};
}

size_t engine_driver_bytes(const struct engine_driver_cfg *cfg)
{
    struct compute_cfg c = compute_cfg(cfg);
    return compute_driver_bytes(&c);
}

static enum err_code open_engine(struct engine_driver *d, struct placement *placement,
                                 struct err *why)
{
    const struct engine_driver_cfg *cfg = &d->cfg;
    const struct hparams *hp = model_hparams(cfg->model);
    uint32_t row_bytes = 0; /* of the layer whose experts take most */
    for (uint32_t l = 0; l < hp->n_layers; l++) {
        if (!hp->is_moe[l]) continue;
        enum row_format f = model_expert_rows(cfg->model, l);
        uint32_t bytes = (uint32_t)(row_data_bytes(f, hp->hidden) + row_scale_bytes(f, hp->hidden));
        if (bytes > row_bytes) row_bytes = bytes;
    }
    struct compute_cfg cc = compute_cfg(cfg);
    struct engine_cfg e = {
        .n_layers = hp->n_layers,
        .n_experts = hp->n_experts,
        .top_k = hp->top_k,
        .is_moe = hp->is_moe,
        .ctx = cfg->ctx,
        .n_kv_blocks = cfg->n_kv_blocks,
        .chunk = cfg->chunk,
        .max_decode_rows = cfg->max_decode_rows,
        .prefill_logit_rows = compute_driver_logit_rows(&cc),
        .decode_slots = cfg->decode_slots,
        .prefill_slots = cfg->prefill_slots,
        .max_running = cfg->max_running,
        .max_waiting = cfg->max_waiting,
        .eos = hp->eos,
        .n_eos = hp->n_eos,
        .n_encoder_layers = hp->n_encoder_layers,
        .rope_length = hp->rope.kind == ROPE_LONG ? hp->rope.original_ctx : 0,
        .dispatch = {.n_nodes = node_driver_count(d->nodes),
                     .row_bytes = row_bytes,
                     .result_bytes = hp->hidden * (model_reply_bf16(cfg->model) ? 2u : 4u),
                     .piece_bytes = cfg->n_targets > 0 ? LIMIT_PIECE_BYTES : UINT32_MAX,
                     .bulk_outstanding = LIMIT_BULK_OUTSTANDING,
                     .min_silence_us = 250000},
        .placement = placement,
    };
    return engine_open(&e, &d->engine, why);
}

enum err_code engine_driver_open(const struct engine_driver_cfg *cfg, struct rpc *rpc,
                                 struct engine_driver **out, struct err *why)
{
    struct engine_driver *d = mem_zalloc(sizeof *d);
    if (d == NULL) return err_nomem(why, "engine driver");
    d->cfg = *cfg;
    d->rpc = rpc;
    d->n_slots = cfg->decode_slots + cfg->prefill_slots;
    d->jobs = mem_zalloc_array(d->n_slots, sizeof *d->jobs);
    d->job_waiting = mem_zalloc_array(d->n_slots, sizeof *d->job_waiting);
    struct placement *placement = NULL;
    struct compute_cfg cc = compute_cfg(cfg);
    enum err_code rc =
        d->jobs == NULL || d->job_waiting == NULL ? err_nomem(why, "engine driver") : ERR_OK;
    if (rc == ERR_OK) rc = compute_driver_open(&cc, &d->compute, why);
    if (rc == ERR_OK) {
        struct node_driver_cfg nc = {.file = cfg->file,
                                     .quantize = cfg->quantize,
                                     .targets = cfg->targets,
                                     .n_targets = cfg->n_targets,
                                     .replicas = cfg->replicas,
                                     .placement_seed = cfg->placement_seed,
                                     .rpc = rpc,
                                     .compute = d->compute,
                                     .local = cfg->local,
                                     .workers = cfg->workers,
                                     .kernels_name = cfg->kernels->name,
                                     .metrics = cfg->metrics,
                                     .event = node_event,
                                     .changed = node_changed,
                                     .engine = the_engine,
                                     .ctx = d};
        rc = node_driver_open(&nc, &d->nodes, &placement, why);
    }
    if (rc == ERR_OK) rc = open_engine(d, placement, why);
    placement_release(placement);
    if (rc != ERR_OK) {
        engine_driver_close(d);
        return rc;
    }
    rpc_set_spin(rpc, cfg->spin_us);
    *out = d;
    return ERR_OK;
}

void engine_driver_wake(void *self)
{
    rpc_wake(((struct engine_driver *)self)->rpc);
}

enum err_code engine_driver_start(struct engine_driver *d, struct client_driver *clients,
                                  struct err *why)
{
    d->clients = clients;
    workers_set_pump(d->cfg.workers, pump, d);
    enum err_code rc = node_driver_start(d->nodes, why);
    if (rc != ERR_OK) return rc;
    int e = pthread_create(&d->thread, NULL, thread_main, d);
    if (e != 0) return err_set(why, ERR_EXHAUSTED, "start the engine thread: %s", strerror(e));
    d->started = true;
    return ERR_OK;
}

void engine_driver_stop(struct engine_driver *d)
{
    if (!d->started) return;
    atomic_store(&d->stop, true);
    rpc_wake(d->rpc);
    pthread_join(d->thread, NULL);
    d->started = false;
}

void engine_driver_close(struct engine_driver *d)
{
    if (d == NULL) return;
    engine_driver_stop(d);
    node_driver_close(d->nodes);
    engine_close(d->engine);
    compute_driver_close(d->compute);
    mem_free(d->jobs);
    mem_free(d->job_waiting);
    mem_free(d->unsent);
    mem_free(d);
}
