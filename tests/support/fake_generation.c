#include "tests/support/fake_generation.h"

#include <string.h>

#include "common/base/mem.h"

static void drop(struct fake_generation *f, struct fake_sequence *s)
{
    mem_free(s->prompt);
    s->prompt = NULL;
    s->used = false;
    f->n_live--;
}

static void fill_logprobs(const struct fake_sequence *s, struct generation_event *ev)
{
    ev->has_logprob = true;
    ev->logprob = -0.5f - 0.25f * (float)(ev->index % 4);
    ev->n_top = s->spec.top_logprobs;
    for (uint32_t i = 0; i < ev->n_top; i++)
        ev->top[i] = (struct generation_logprob){ev->token + (int32_t)i, ev->logprob - (float)i};
}

/* One event of one sequence; false when it ended. The sink may cancel it. */
static bool step(struct fake_generation *f, struct fake_sequence *s)
{
    uint64_t handle = s->handle;
    struct generation_event ev = {0};
    if (s->spec.prompt_logprobs && s->n_prompt_sent < s->spec.n_prompt) {
        ev.kind = GENERATION_PROMPT;
        ev.index = s->n_prompt_sent;
        ev.token = s->n_prompt_sent == 0 ? -1 : s->prompt[s->n_prompt_sent];
        s->n_prompt_sent++;
        if (ev.index > 0) fill_logprobs(s, &ev);
        s->sink(s->ctx, &ev);
        return s->used && s->handle == handle;
    }
    if (f->fail_at >= 0 && s->n_sent == (uint32_t)f->fail_at) {
        struct err why;
        err_set(&why, f->fail_code, "node 3 did not answer for layer 2");
        ev.kind = GENERATION_FAILED;
        ev.error = &why;
        generation_sink sink = s->sink;
        void *ctx = s->ctx;
        drop(f, s);
        sink(ctx, &ev);
        return false;
    }
    bool script_ended = !f->endless && s->n_sent >= f->n_script;
    bool length = s->n_sent == s->spec.max_tokens;
    if (!length) {
        ev.kind = GENERATION_TOKEN;
        ev.index = s->n_sent++;
        ev.token = script_ended ? f->eos : f->script[ev.index % f->n_script];
        if (s->spec.logprobs) fill_logprobs(s, &ev);
        f->n_tokens++;
        s->sink(s->ctx, &ev);
        if (!s->used || s->handle != handle) return false;
        if (!script_ended) return true;
    }
    struct generation_event end = {.kind = GENERATION_FINISHED, .stopped_by_eos = !length};
    generation_sink sink = s->sink;
    void *ctx = s->ctx;
    drop(f, s);
    sink(ctx, &end);
    return false;
}

static void on_timer(uv_timer_t *t)
{
    struct fake_generation *f = t->data;
    if (f->hold) return;
    for (size_t i = 0; i < FAKE_SEQUENCES; i++) {
        struct fake_sequence *s = &f->sequences[i];
        for (uint32_t k = 0; k < f->per_step && s->used && !s->paused; k++)
            if (!step(f, s)) break;
    }
}

static enum err_code start(void *self, const struct generation_spec *spec, generation_sink sink,
                           void *ctx, uint64_t *handle, struct err *why)
{
    struct fake_generation *f = self;
    if (f->refuse_code != ERR_OK) return err_set(why, f->refuse_code, "refused by the test");
    struct fake_sequence *s = NULL;
    for (size_t i = 0; i < f->capacity && s == NULL; i++)
        if (!f->sequences[i].used) s = &f->sequences[i];
    if (s == NULL) return err_set(why, ERR_EXHAUSTED, "the queue is full");
    size_t bytes = spec->n_prompt * sizeof *spec->prompt;
    *s = (struct fake_sequence){
        .used = true, .handle = ++f->next_handle, .spec = *spec, .sink = sink, .ctx = ctx};
    s->prompt = mem_alloc(bytes);
    if (s->prompt == NULL) {
        s->used = false;
        return err_nomem(why, "a fake sequence");
    }
    memcpy(s->prompt, spec->prompt, bytes);
    f->last_spec = *spec;
    f->last_spec.prompt = NULL;
    const struct logit_adjust *adjust = &spec->sampling.adjust;
    for (uint32_t i = 0; i < adjust->n_bias && i < 8; i++)
        f->last_bias[i] = adjust->bias[i];
    f->last_spec.sampling.adjust.bias = f->last_bias;
    f->n_last_prompt = spec->n_prompt < 512 ? spec->n_prompt : 512;
    memcpy(f->last_prompt, spec->prompt, f->n_last_prompt * sizeof *spec->prompt);
    f->n_started++;
    f->n_live++;
    *handle = s->handle;
    return ERR_OK;
}

static struct fake_sequence *find(struct fake_generation *f, uint64_t handle)
{
    for (size_t i = 0; i < FAKE_SEQUENCES; i++)
        if (f->sequences[i].used && f->sequences[i].handle == handle) return &f->sequences[i];
    return NULL;
}

static void cancel(void *self, uint64_t handle)
{
    struct fake_generation *f = self;
    struct fake_sequence *s = find(f, handle);
    if (s == NULL) return;
    drop(f, s);
    f->n_cancelled++;
}

static void pause_sequence(void *self, uint64_t handle, bool paused)
{
    struct fake_generation *f = self;
    struct fake_sequence *s = find(f, handle);
    if (s == NULL) return;
    s->paused = paused;
    if (paused)
        f->n_paused++;
    else
        f->n_resumed++;
}

struct fake_question {
    uv_timer_t timer;
    struct fake_generation *fake;
    void (*done)(void *ctx, const char *json);
    void *ctx;
};

static void free_question(uv_handle_t *h)
{
    mem_free(h->data);
}

static void on_question(uv_timer_t *t)
{
    struct fake_question *q = t->data;
    q->done(q->ctx, q->fake->view);
    uv_close((uv_handle_t *)t, free_question);
}

static void cluster(void *self, void (*done)(void *ctx, const char *json), void *ctx)
{
    struct fake_generation *f = self;
    struct fake_question *q = mem_zalloc(sizeof *q);
    *q = (struct fake_question){.fake = f, .done = done, .ctx = ctx};
    uv_timer_init(f->loop, &q->timer);
    q->timer.data = q;
    uv_timer_start(&q->timer, on_question, 1, 0);
}

static bool ready(void *self, const char **reason)
{
    struct fake_generation *f = self;
    if (!f->ready) *reason = f->reason;
    return f->ready;
}

void fake_generation_init(struct fake_generation *f, uv_loop_t *loop)
{
    f->loop = loop;
    f->ready = true;
    f->reason = "loading";
    f->fail_at = -1;
    f->eos = -1;
    if (f->capacity == 0) f->capacity = FAKE_SEQUENCES;
    if (f->per_step == 0) f->per_step = 1;
    f->view =
        "{\"epoch\":7,\"nodes\":[{\"id\":\"a\"}],\"placement\":{\"layers\":2},\"engine\":{},\"ready\":false,"
        "\"reasons\":[\"layer 1 expert 3 has no replica\"]}";
    uv_timer_init(loop, &f->timer);
    f->timer.data = f;
    uv_timer_start(&f->timer, on_timer, 1, 1);
}

void fake_generation_stop(struct fake_generation *f)
{
    uv_close((uv_handle_t *)&f->timer, NULL);
    for (size_t i = 0; i < FAKE_SEQUENCES; i++)
        if (f->sequences[i].used) drop(f, &f->sequences[i]);
}

struct generation_service fake_generation_service(struct fake_generation *f)
{
    return (struct generation_service){f, start, cancel, pause_sequence, cluster, ready};
}
