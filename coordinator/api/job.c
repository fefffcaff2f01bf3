#include "coordinator/api/job.h"

#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#define INLINE_BODY_BYTES (64u << 10) /* longer ones are prepared on libuv's pool */
#define CONCURRENT_MAX    16u         /* sequences of one request in the engine at once */

static const char stream_headers[] = "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n";

static uint64_t now_ms(const struct job *j)
{
    return uv_now(j->api->loop);
}

static struct metrics *metrics_of(const struct job *j)
{
    return j->api->cfg.metrics;
}

/* ---- the end ---- */

static void count_outcome(struct job *j, enum metric outcome)
{
    if (j->counted) return;
    j->counted = true;
    metrics_count(metrics_of(j), outcome, 1);
    uint64_t n_tokens = 0;
    for (uint32_t i = 0; i < j->n_choices; i++)
        n_tokens += j->choices[i].choice.n_tokens;
    log_debug("api", "id=%s tokens=%llu ms=%llu outcome=%s", j->id, (unsigned long long)n_tokens,
              (unsigned long long)(now_ms(j) - j->begun_ms),
              outcome == METRIC_REQUEST_STOP        ? "stop"
              : outcome == METRIC_REQUEST_LENGTH    ? "length"
              : outcome == METRIC_REQUEST_CANCELLED ? "cancelled"
                                                    : "error");
}

static void cancel_all(struct job *j)
{
    const struct generation_service *s = &j->api->cfg.service;
    for (uint32_t i = 0; i < j->n_choices; i++) {
        if (!j->choices[i].live) continue;
        j->choices[i].live = false;
        s->cancel(s->self, j->choices[i].handle);
    }
}

static void job_free(struct job *j)
{
    struct api *a = j->api;
    if (j->streaming) metrics_add(metrics_of(j), METRIC_STREAMS_OPEN, -1);
    if (j->prev != NULL)
        j->prev->next = j->next;
    else
        a->jobs = j->next;
    if (j->next != NULL) j->next->prev = j->prev;
    for (uint32_t i = 0; i < j->n_choices; i++)
        choice_deinit(&j->choices[i].choice);
    for (uint32_t i = 0; i < j->n_prompts && j->prompts != NULL; i++) {
        ids_free(&j->prompts[i].ids);
        buf_free(&j->prompts[i].echo);
    }
    mem_free(j->choices);
    mem_free(j->prompts);
    request_deinit(&j->request);
    mem_free(j->body);
    mem_free(j);
    api_release(a);
}

/* The client left, queued or mid-stream. */
static void on_gone(void *ctx)
{
    struct job *j = ctx;
    j->ex = NULL;
    count_outcome(j, METRIC_REQUEST_CANCELLED);
    cancel_all(j);
    if (!j->working) job_free(j);
}

/* The one clear error: with its status while the head has not left, else as an event without [DONE]. */
static void fail(struct job *j, const struct fault *why)
{
    cancel_all(j);
    count_outcome(j, why->status < 500 ? METRIC_REQUEST_ERROR_4XX : METRIC_REQUEST_ERROR_5XX);
    if (!j->streaming) {
        http_reply_fault(j->ex, why, NULL);
    } else {
        struct buf b = {0};
        buf_puts(&b, "data: ");
        error_body_put(&b, why);
        buf_puts(&b, "\n\n");
        if (!b.failed) http_stream_write(j->ex, b.data, b.len);
        if (b.failed)
            http_abort(j->ex);
        else
            http_stream_end(j->ex);
        buf_free(&b);
    }
    job_free(j);
}

static void fail_memory(struct job *j)
{
    struct fault why;
    fault_set(&why, 503, "overloaded", NULL, "no memory for the answer");
    fail(j, &why);
}

static void observe_end(struct job *j)
{
    bool length = false;
    for (uint32_t i = 0; i < j->n_choices; i++) {
        const struct job_choice *c = &j->choices[i];
        length |= c->choice.end == CHOICE_LENGTH;
        if (c->choice.n_tokens > 1)
            metrics_observe(metrics_of(j), METRIC_PER_OUTPUT_TOKEN,
                            (double)(c->last_ms - c->first_ms) / 1e3 / (c->choice.n_tokens - 1));
    }
    metrics_observe(metrics_of(j), METRIC_REQUEST_DURATION,
                    (double)(now_ms(j) - j->begun_ms) / 1e3);
    count_outcome(j, length ? METRIC_REQUEST_LENGTH : METRIC_REQUEST_STOP);
}

/* ---- streaming ---- */

/* Above the mark the engine's sequences rest until the client has read. */
static void set_paused(struct job *j, bool paused)
{
    const struct generation_service *s = &j->api->cfg.service;
    for (uint32_t i = 0; i < j->n_choices; i++) {
        struct job_choice *c = &j->choices[i];
        if (!c->live || c->paused == paused) continue;
        c->paused = paused;
        s->pause(s->self, c->handle, paused);
    }
}

static void on_drained(void *ctx)
{
    set_paused(ctx, false);
}

static void write_stream(struct job *j, const struct buf *b)
{
    j->written_ms = now_ms(j);
    http_stream_write(j->ex, b->data, b->len);
    if (http_unsent(j->ex) > LIMIT_HTTP_UNSENT_MARK) set_paused(j, true);
}

static void open_stream(struct job *j, struct buf *b)
{
    if (j->streaming) return;
    j->streaming = true;
    metrics_add(metrics_of(j), METRIC_STREAMS_OPEN, 1);
    http_stream_begin(j->ex, 200, "text/event-stream", stream_headers);
    if (j->kind != REQUEST_CHAT) return;
    for (uint32_t i = 0; i < j->n_choices; i++)
        reply_chunk_role(j, i, b);
}

void job_tick(struct job *list, uint64_t now)
{
    for (struct job *j = list; j != NULL; j = j->next) {
        if (j->working || j->ex == NULL || !j->request.stream ||
            now - j->written_ms < j->api->cfg.ping_ms)
            continue;
        struct buf b = {0};
        open_stream(j, &b);
        buf_puts(&b, ": ping\n\n");
        /* One that is missed for want of memory is no loss; neither is one that a slow reader would find queued. */
        if (!b.failed && http_unsent(j->ex) == 0) write_stream(j, &b);
        buf_free(&b);
    }
}

/* ---- what the engine says ---- */

/* All choices ended. */
static void finish(struct job *j)
{
    struct buf b = {0};
    if (j->request.stream) {
        open_stream(j, &b);
        if (j->request.include_usage) reply_chunk_usage(j, &b);
        buf_puts(&b, "data: [DONE]\n\n");
    } else {
        reply_whole(j, &b);
    }
    if (b.failed) {
        buf_free(&b);
        fail_memory(j);
        return;
    }
    observe_end(j);
    if (j->request.stream) {
        write_stream(j, &b);
        http_stream_end(j->ex);
    } else {
        http_reply(j->ex, 200, "application/json", NULL, b.data, b.len);
    }
    buf_free(&b);
    job_free(j);
}

static bool start_more(struct job *j);

/* Send what may leave; go on with the next sequences or the end. The job may be gone afterwards. */
static void advance(struct job *j, struct job_choice *c)
{
    if (c->choice.failed) {
        fail_memory(j);
        return;
    }
    if (j->request.stream) {
        struct buf b = {0};
        open_stream(j, &b);
        if (reply_has_text(c)) reply_chunk_text(j, c, &b);
        if (c->choice.end != CHOICE_OPEN) reply_chunk_finish(j, c, &b);
        bool failed = b.failed;
        if (!failed && b.len > 0) write_stream(j, &b);
        buf_free(&b);
        if (failed) {
            fail_memory(j);
            return;
        }
    }
    if (c->choice.end == CHOICE_OPEN) return;
    j->n_done++;
    if (j->n_done == j->n_choices)
        finish(j);
    else
        start_more(j);
}

static void on_token(struct job *j, struct job_choice *c, const struct generation_event *ev)
{
    const struct generation_service *s = &j->api->cfg.service;
    c->last_ms = now_ms(j);
    if (c->choice.n_tokens == 0) {
        c->first_ms = c->last_ms;
        metrics_observe(metrics_of(j), METRIC_TTFT, (double)(c->first_ms - j->begun_ms) / 1e3);
    }
    metrics_count(metrics_of(j), METRIC_GENERATION_TOKENS, 1);
    if (choice_token(&c->choice, ev)) {
        c->live = false;
        s->cancel(s->self, c->handle);
    }
    advance(j, c);
}

/* The engine speaks of positions; which token stands there is known here. */
static void on_prompt_token(struct job_choice *c, const struct generation_event *ev)
{
    if (ev->index >= c->prompt->ids.len) return;
    struct generation_event known = *ev;
    known.token = c->prompt->ids.data[ev->index];
    choice_prompt_token(&c->choice, &known);
}

static void on_event(void *ctx, const struct generation_event *ev)
{
    struct job_choice *c = ctx;
    struct job *j = c->job;
    struct fault why;
    switch (ev->kind) {
    case GENERATION_PROMPT:
        on_prompt_token(c, ev);
        break;
    case GENERATION_TOKEN:
        on_token(j, c, ev);
        break;
    case GENERATION_FINISHED:
        c->live = false;
        c->n_cached = ev->n_cached;
        choice_finish(&c->choice, ev->stopped_by_eos);
        advance(j, c);
        break;
    case GENERATION_FAILED:
        c->live = false;
        fault_from_err(&why, ev->error);
        fail(j, &why);
        break;
    }
}

/* ---- the beginning ---- */

static enum err_code start_one(struct job *j, struct job_choice *c, struct err *why)
{
    const struct generation_service *s = &j->api->cfg.service;
    struct generation_spec spec =
        request_spec(&j->request, &j->api->cfg.model, &c->prompt->ids, c->sample);
    return s->start(s->self, &spec, on_event, c, &c->handle, why);
}

/* Start sequences, few at a time; a full queue refuses a request only when none of its own is running. False when
 * the job is gone. */
static bool start_more(struct job *j)
{
    while (j->n_started < j->n_choices && j->n_started - j->n_done < CONCURRENT_MAX) {
        struct err e;
        struct job_choice *c = &j->choices[j->n_started];
        enum err_code rc = start_one(j, c, &e);
        if (rc == ERR_EXHAUSTED && j->n_started > j->n_done) return true;
        if (rc != ERR_OK) {
            struct fault why;
            fault_from_err(&why, &e);
            fail(j, &why);
            return false;
        }
        c->live = true;
        j->n_started++;
        if (c->sample == 0) metrics_count(metrics_of(j), METRIC_PROMPT_TOKENS, c->prompt->ids.len);
    }
    return true;
}

/* Whether requests are taken is the service's to say: one that has lost its nodes lets them wait. */
static void launch(struct job *j)
{
    mem_free(j->body);
    j->body = NULL;
    if (j->status != 0) {
        fail(j, &j->fault);
        return;
    }
    start_more(j);
}

static void on_work(uv_work_t *w)
{
    job_prepare(w->data);
}

static void after_work(uv_work_t *w, int cancelled)
{
    struct job *j = w->data;
    (void)cancelled; /* never asked for */
    j->working = false;
    metrics_add(metrics_of(j), METRIC_PROMPTS_PREPARING, -1);
    if (j->ex == NULL)
        job_free(j);
    else
        launch(j);
}

void job_begin(struct api *a, struct http_exchange *ex, enum request_kind kind)
{
    struct fault why;
    if (!api_check_json_post(ex)) return;
    if (a->draining) {
        fault_set(&why, 503, "draining", NULL, "the server is shutting down");
        http_reply_fault(ex, &why, NULL);
        return;
    }
    size_t n;
    const char *body = http_body(ex, &n);
    struct job *j = mem_zalloc(sizeof *j);
    char *copy = j == NULL ? NULL : mem_strndup(body, n);
    if (copy == NULL) {
        mem_free(j);
        fault_set(&why, 503, "overloaded", NULL, "no memory for the request");
        http_reply_fault(ex, &why, NULL);
        return;
    }
    api_hold(a);
    j->api = a;
    j->ex = ex;
    j->kind = kind;
    j->body = copy;
    j->n_body = n;
    j->begun_ms = j->written_ms = uv_now(a->loop);
    j->created = clock_unix_seconds();
    snprintf(j->id, sizeof j->id, "%s-%016llx", kind == REQUEST_CHAT ? "chatcmpl" : "cmpl",
             (unsigned long long)a->next_id);
    j->serial = a->next_id++;
    j->next = a->jobs;
    if (a->jobs != NULL) a->jobs->prev = j;
    a->jobs = j;
    http_watch(ex, j, on_gone, on_drained);
    j->work.data = j;
    if (n > INLINE_BODY_BYTES && uv_queue_work(a->loop, &j->work, on_work, after_work) == 0) {
        j->working = true;
        metrics_add(a->cfg.metrics, METRIC_PROMPTS_PREPARING, 1);
        return;
    }
    job_prepare(j);
    launch(j);
}
