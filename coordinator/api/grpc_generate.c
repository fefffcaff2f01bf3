/* The loop half: from a decoded request to tokens, and from tokens to replies. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "common/base/mem.h"
#include "coordinator/api/grpc_internal.h"
#include "coordinator/api/prompt.h"

#define INLINE_QUERY_BYTES (64u << 10) /* longer ones are prepared on libuv's pool */

static void release_query(struct grpc_call *c)
{
    frame_generate_request_free(c->query);
    atomic_fetch_sub(&c->service->query_bytes, c->query_bytes);
    c->query = NULL;
    c->query_bytes = 0;
}

void grpc_generate_deinit(struct grpc_call *c)
{
    if (c->query != NULL) release_query(c);
    request_deinit(&c->request);
    choice_deinit(&c->choice);
    ids_free(&c->prompt);
}

/* ---- to the polling half ---------------------------------------------------------------------- */

static void post(struct grpc_mail *m)
{
    struct grpc_service *s = m->call->service;
    if (mailbox_post(&s->to_rpc, &m->mail)) s->cfg.wake(s->cfg.wake_ctx);
}

static void count_outcome(struct grpc_call *c, enum metric outcome)
{
    if (c->counted) return;
    c->counted = true;
    metrics_count(c->service->cfg.metrics, outcome, 1);
}

void grpc_generate_cancel(struct grpc_call *c)
{
    const struct generation_service *g = &c->service->cfg.service;
    if (!c->live) return;
    c->live = false;
    g->cancel(g->self, c->handle);
}

static void end(struct grpc_call *c, enum err_code code, const char *text)
{
    grpc_generate_cancel(c);
    if (c->ended) return;
    c->ended = true;
    if (code != ERR_OK)
        count_outcome(c, err_http_status(code) < 500 ? METRIC_REQUEST_ERROR_4XX
                                                     : METRIC_REQUEST_ERROR_5XX);
    err_set(&c->end_why, code, "%s", text);
    post(&c->end);
}

/* The status that a fault of the HTTP API has here. */
static enum err_code code_of(const struct fault *f)
{
    switch (f->status) {
    case 404:
        return ERR_NOT_FOUND;
    case 501:
        return ERR_UNSUPPORTED;
    case 503:
        return f->code != NULL && strcmp(f->code, "overloaded") == 0 ? ERR_EXHAUSTED
                                                                     : ERR_UNAVAILABLE;
    case 504:
        return ERR_TIMEOUT;
    default:
        return f->status < 500 ? ERR_INVALID : ERR_INTERNAL;
    }
}

static void reply(struct grpc_call *c, struct generate_reply *r)
{
    struct err why;
    struct grpc_mail *m = c->choice.failed ? NULL : mem_zalloc(sizeof *m);
    r->prompt_token_ids = c->prompt.data; /* gone after the first */
    r->n_prompt_token_ids = c->prompt.len;
    r->text = c->choice.text.len > 0 ? c->choice.text.data : "";
    if (m == NULL || frame_encode_generate_reply(r, &m->bytes, &why) != ERR_OK) {
        if (m != NULL) buf_free(&m->bytes);
        mem_free(m);
        end(c, ERR_EXHAUSTED, "no memory for the answer");
        return;
    }
    m->kind = GRPC_MAIL_REPLY;
    m->call = c;
    post(m);
    ids_free(&c->prompt);
    choice_drop(&c->choice, 0);
}

/* ---- what the engine says --------------------------------------------------------------------- */

static void finish(struct grpc_call *c)
{
    struct metrics *metrics = c->service->cfg.metrics;
    bool length = c->choice.end == CHOICE_LENGTH;
    struct generate_reply r = {.finish_reason = length ? "length" : "stop",
                               .has_usage = true,
                               .prompt_tokens = c->n_prompt,
                               .completion_tokens = c->choice.n_tokens};
    reply(c, &r);
    if (c->ended) return;
    if (c->choice.n_tokens > 1)
        metrics_observe(metrics, METRIC_PER_OUTPUT_TOKEN,
                        (double)(c->last_ms - c->first_ms) / 1e3 / (c->choice.n_tokens - 1));
    metrics_observe(metrics, METRIC_REQUEST_DURATION,
                    (double)(uv_now(c->service->loop) - c->begun_ms) / 1e3);
    count_outcome(c, length ? METRIC_REQUEST_LENGTH : METRIC_REQUEST_STOP);
    end(c, ERR_OK, "");
}

/* Every token leaves in a message of its own, also those whose text is held back or not shown, so that logprobs stand
 * beside their ids. */
static void on_token(struct grpc_call *c, const struct generation_event *ev)
{
    struct metrics *metrics = c->service->cfg.metrics;
    c->last_ms = uv_now(c->service->loop);
    if (c->choice.n_tokens == 0) {
        c->first_ms = c->last_ms;
        metrics_observe(metrics, METRIC_TTFT, (double)(c->first_ms - c->begun_ms) / 1e3);
    }
    metrics_count(metrics, METRIC_GENERATION_TOKENS, 1);
    bool stopped = choice_token(&c->choice, ev);
    struct generate_logprob chosen = {ev->token, ev->logprob}, top[LIMIT_TOP_LOGPROBS];
    struct generate_reply r = {.token_ids = &ev->token, .n_token_ids = 1};
    if (c->logprobs) {
        for (uint32_t i = 0; i < ev->n_top; i++)
            top[i] = (struct generate_logprob){ev->top[i].id, ev->top[i].logprob};
        r.logprobs = &chosen;
        r.n_logprobs = 1;
        r.top_logprobs = top;
        r.n_top_logprobs = ev->n_top;
    }
    reply(c, &r);
    if (stopped) grpc_generate_cancel(c);
    if (stopped && !c->ended) finish(c);
}

static void on_event(void *ctx, const struct generation_event *ev)
{
    struct grpc_call *c = ctx;
    switch (ev->kind) {
    case GENERATION_PROMPT:
        break; /* never asked for */
    case GENERATION_TOKEN:
        on_token(c, ev);
        break;
    case GENERATION_FINISHED:
        c->live = false;
        choice_finish(&c->choice, ev->stopped_by_eos);
        finish(c);
        break;
    case GENERATION_FAILED:
        c->live = false;
        end(c, ev->error->code, ev->error->text);
        break;
    }
}

/* ---- from request to tokens ------------------------------------------------------------------- */

static int put_number(json_t *o, const char *key, double x, struct fault *why)
{
    /* JSON has no way to write these, so the common check would not see them. */
    if (!isfinite(x))
        return fault_set(why, 400, "invalid_value", key, "%s is %g; it must be a finite number",
                         key, x);
    return json_object_set_new(o, key, json_real(x)) == 0 ? 0 : -1;
}

static bool put_messages(json_t *o, const struct generate_request *q)
{
    json_t *list = json_array();
    for (size_t i = 0; i < q->n_messages && list != NULL; i++) {
        json_t *m =
            json_pack("{s:s,s:s}", "role", q->messages[i].role, "content", q->messages[i].content);
        if (json_array_append_new(list, m) == 0) continue;
        json_decref(list);
        list = NULL;
    }
    return json_object_set_new(o, "messages", list) == 0;
}

static bool put_ids(json_t *o, const struct generate_request *q)
{
    json_t *list = json_array();
    int failed = list == NULL;
    for (size_t i = 0; i < q->n_prompt_ids && failed == 0; i++)
        failed = json_array_append_new(list, json_integer(q->prompt_ids[i]));
    failed |= json_object_set(o, "prompt", list);
    json_decref(list);
    return failed == 0;
}

static bool put_stop(json_t *o, const struct generate_request *q)
{
    json_t *list = json_array();
    int failed = list == NULL;
    for (size_t i = 0; i < q->n_stop && failed == 0; i++)
        failed = json_array_append_new(list, json_string(q->stop[i]));
    failed |= json_object_set(o, "stop", list);
    json_decref(list);
    return failed == 0;
}

static int put_logit_bias(json_t *o, const struct generate_request *q, struct fault *why)
{
    if (q->n_logit_bias == 0) return 0;
    json_t *object = json_object();
    int status = object == NULL ? -1 : 0;
    for (size_t i = 0; i < q->n_logit_bias && status == 0; i++) {
        char key[16];
        snprintf(key, sizeof key, "%d", q->logit_bias[i].id);
        if (json_object_get(object, key) != NULL)
            status = fault_set(why, 400, "invalid_value", "logit_bias",
                               "logit_bias has the id %s twice", key);
        else
            status = put_number(object, key, q->logit_bias[i].bias, why);
    }
    if (status == 0 && json_object_set(o, "logit_bias", object) != 0) status = -1;
    json_decref(object);
    return status;
}

static bool put_int(json_t *o, const char *key, bool has, int64_t value)
{
    return !has || json_object_set_new(o, key, json_integer(value)) == 0;
}

/* The request as the HTTP API would have got it, so that both have one set of checks and defaults. 0, a status, or
 * -1 when memory is short. */
static int put_query(json_t *o, enum request_kind kind, const struct generate_request *q,
                     struct fault *why)
{
    bool chat = kind == REQUEST_CHAT, ok;
    if (chat)
        ok = put_messages(o, q);
    else if (q->prompt != NULL)
        ok = json_object_set_new(o, "prompt", json_string(q->prompt)) == 0;
    else
        ok = put_ids(o, q);
    if (q->model[0] != '\0') ok = ok && json_object_set_new(o, "model", json_string(q->model)) == 0;
    if (q->ignore_eos) ok = ok && json_object_set_new(o, "ignore_eos", json_true()) == 0;
    if (q->has_top_logprobs && chat)
        ok = ok && json_object_set_new(o, "logprobs", json_true()) == 0;
    ok = ok &&
         put_int(o, chat ? "top_logprobs" : "logprobs", q->has_top_logprobs, q->top_logprobs) &&
         put_int(o, "max_tokens", q->has_max_tokens, q->max_tokens) &&
         put_int(o, "top_k", q->has_top_k, q->top_k) && put_int(o, "seed", q->has_seed, q->seed) &&
         put_stop(o, q);
    int status = ok ? 0 : -1;
    if (status == 0 && q->has_temperature)
        status = put_number(o, "temperature", q->temperature, why);
    if (status == 0 && q->has_top_p) status = put_number(o, "top_p", q->top_p, why);
    if (status == 0 && q->has_min_p) status = put_number(o, "min_p", q->min_p, why);
    if (status == 0 && q->has_presence_penalty)
        status = put_number(o, "presence_penalty", q->presence_penalty, why);
    if (status == 0 && q->has_frequency_penalty)
        status = put_number(o, "frequency_penalty", q->frequency_penalty, why);
    if (status == 0 && q->has_repetition_penalty)
        status = put_number(o, "repetition_penalty", q->repetition_penalty, why);
    if (status == 0) status = put_logit_bias(o, q, why);
    return status;
}

static int prepare(struct grpc_call *c)
{
    const struct generation_model *model = &c->service->cfg.model;
    const struct generate_request *q = c->query;
    struct fault *why = &c->fault;
    enum request_kind kind = q->n_messages > 0 ? REQUEST_CHAT : REQUEST_COMPLETION;
    struct err e;
    c->request.kind = kind;
    /* Before a long list becomes a longer one. */
    if (q->n_prompt_ids > model->ctx)
        return request_check_length(&c->request, q->n_prompt_ids, model->ctx, why);
    json_t *o = json_object();
    int status = o == NULL ? -1 : put_query(o, kind, q, why);
    if (status != 0) {
        json_decref(o);
        return status > 0 ? status
                          : fault_set(why, 503, "overloaded", NULL, "no memory for the request");
    }
    status = request_from_object(kind, o, model, &c->request, why);
    if (status != 0) return status;
    const struct request *r = &c->request;
    if (kind == REQUEST_CHAT) {
        status = prompt_from_messages(model, r->messages, NULL, r->template_kwargs, &c->prompt,
                                      NULL, why);
    } else if (r->prompts[0].text != NULL) {
        status = prompt_from_text(model, r->prompts[0].text, r->prompts[0].n_text, true, &c->prompt,
                                  why);
    } else if (!ids_append(&c->prompt, r->prompts[0].ids, r->prompts[0].n_ids)) {
        status = fault_set(why, 503, "overloaded", NULL, "no memory for the request");
    }
    if (status == 0) status = request_check_length(r, c->prompt.len, model->ctx, why);
    if (status == 0 && choice_init(&c->choice, 0, r, model->tokenizer, &e) != ERR_OK)
        status = fault_from_err(why, &e);
    if (status != 0) return status;
    c->choice.with_logprobs = false; /* they leave with the ids, not with the text */
    request_settle_seed(&c->request);
    return 0;
}

static void start(struct grpc_call *c)
{
    struct grpc_service *s = c->service;
    const struct generation_service *g = &s->cfg.service;
    const char *reason = "not ready";
    release_query(c);
    if (c->status != 0) {
        end(c, code_of(&c->fault), c->fault.text);
        return;
    }
    if (!g->ready(g->self, &reason)) {
        struct err why;
        err_set(&why, ERR_UNAVAILABLE, "the server is not ready: %s", reason);
        end(c, why.code, why.text);
        return;
    }
    struct generation_spec spec = request_spec(&c->request, &s->cfg.model, &c->prompt, 0);
    struct err why;
    enum err_code rc = g->start(g->self, &spec, on_event, c, &c->handle, &why);
    if (rc != ERR_OK) {
        end(c, rc, why.text);
        return;
    }
    c->live = true;
    c->n_prompt = spec.n_prompt;
    c->logprobs = spec.logprobs;
    metrics_count(s->cfg.metrics, METRIC_PROMPT_TOKENS, spec.n_prompt);
    metrics_add(s->cfg.metrics, METRIC_STREAMS_OPEN, 1);
    request_deinit(&c->request);
}

static void release(struct grpc_call *c)
{
    struct grpc_service *s = c->service;
    if (c->job_prev != NULL)
        c->job_prev->job_next = c->job_next;
    else
        s->jobs = c->job_next;
    if (c->job_next != NULL) c->job_next->job_prev = c->job_prev;
    if (c->n_prompt > 0) metrics_add(s->cfg.metrics, METRIC_STREAMS_OPEN, -1);
    grpc_generate_deinit(c);
    post(&c->released); /* the last that this half does with it */
    grpc_generate_check_drained(s);
}

static void on_work(uv_work_t *w)
{
    struct grpc_call *c = w->data;
    c->status = prepare(c);
}

static void after_work(uv_work_t *w, int cancelled)
{
    struct grpc_call *c = w->data;
    struct grpc_service *s = c->service;
    (void)cancelled; /* never asked for */
    c->working = false;
    s->n_working--;
    metrics_add(s->cfg.metrics, METRIC_PROMPTS_PREPARING, -1);
    if (atomic_load(&s->stopped))
        grpc_generate_check_stopped(s);
    else if (c->gone)
        release(c);
    else
        start(c);
}

static void begin(struct grpc_call *c)
{
    struct grpc_service *s = c->service;
    c->job_next = s->jobs;
    if (s->jobs != NULL) s->jobs->job_prev = c;
    s->jobs = c;
    c->begun_ms = uv_now(s->loop);
    c->work.data = c;
    if (c->query_bytes > INLINE_QUERY_BYTES &&
        uv_queue_work(s->loop, &c->work, on_work, after_work) == 0) {
        c->working = true;
        s->n_working++;
        metrics_add(s->cfg.metrics, METRIC_PROMPTS_PREPARING, 1);
        return;
    }
    c->status = prepare(c);
    start(c);
}

/* ---- news of the polling half ----------------------------------------------------------------- */

static void flow(struct grpc_call *c)
{
    const struct generation_service *g = &c->service->cfg.service;
    bool paused = atomic_load(&c->stalled);
    if (!c->live || c->paused == paused) return;
    c->paused = paused;
    g->pause(g->self, c->handle, paused);
}

static void gone(struct grpc_call *c)
{
    c->gone = true;
    if (!c->ended) count_outcome(c, METRIC_REQUEST_CANCELLED);
    grpc_generate_cancel(c);
    c->ended = true; /* nobody listens */
    if (!c->working) release(c);
}

void grpc_generate_on_async(uv_async_t *a)
{
    struct grpc_service *s = a->data;
    for (struct mail *m = mailbox_take_all(&s->to_loop), *next; m != NULL; m = next) {
        next = m->next; /* once the news are taken it may be posted again */
        if (atomic_load(&s->stopped))
            return; /* perhaps just now, by who heard that all is drained */
        struct grpc_call *c = (struct grpc_call *)((char *)m - offsetof(struct grpc_call, to_loop));
        unsigned news = atomic_exchange(&c->news, 0);
        if ((news & GRPC_NEWS_REQUEST) != 0) begin(c);
        if ((news & GRPC_NEWS_FLOW) != 0) flow(c);
        if ((news & GRPC_NEWS_GONE) != 0) gone(c);
    }
}

void grpc_generate_check_drained(struct grpc_service *s)
{
    if (!atomic_load(&s->draining) || s->jobs != NULL || s->on_drained == NULL) return;
    void (*done)(void *) = s->on_drained;
    s->on_drained = NULL;
    done(s->drained_ctx);
}

void grpc_generate_check_stopped(struct grpc_service *s)
{
    if (!s->async_closed || s->n_working > 0 || s->told_stopped) return;
    s->told_stopped = true;
    if (s->on_stopped != NULL) s->on_stopped(s->stopped_ctx);
}
