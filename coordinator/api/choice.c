#include "coordinator/api/choice.h"

#include <string.h>

#include "common/base/mem.h"

enum err_code choice_init(struct choice *c, uint32_t index, const struct request *r,
                          const struct tokenizer *t, struct err *why)
{
    const char *stops[LIMIT_STOP_STRINGS];
    size_t lens[LIMIT_STOP_STRINGS];
    for (uint32_t i = 0; i < r->n_stop; i++) {
        stops[i] = r->stop[i].s;
        lens[i] = r->stop[i].n;
    }
    c->index = index;
    c->with_logprobs = r->logprobs;
    c->eos = r->eos;
    c->n_eos = r->n_eos;
    text_stream_init(&c->stream, t, true);
    return stop_matcher_init(&c->stops, stops, lens, r->n_stop, why);
}

static void free_tops(struct choice *c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        mem_free(c->logprobs[i].top);
}

void choice_deinit(struct choice *c)
{
    text_stream_deinit(&c->stream);
    stop_matcher_deinit(&c->stops);
    buf_free(&c->text);
    buf_free(&c->scratch);
    ids_free(&c->ids);
    free_tops(c, c->n_logprobs);
    mem_free(c->logprobs);
    *c = (struct choice){0};
}

static void add_logprob(struct choice *c, const struct generation_event *ev, bool of_prompt)
{
    if (c->n_logprobs == c->cap_logprobs) {
        size_t cap = c->cap_logprobs == 0 ? 16 : 2 * c->cap_logprobs, bytes;
        struct choice_logprob *more =
            size_mul(cap, sizeof *more, &bytes) ? mem_realloc(c->logprobs, bytes) : NULL;
        if (more == NULL) {
            c->failed = true;
            return;
        }
        c->logprobs = more;
        c->cap_logprobs = cap;
    }
    struct generation_logprob *top = NULL;
    if (ev->n_top > 0) {
        top = mem_alloc(ev->n_top * sizeof *top);
        if (top == NULL) {
            c->failed = true;
            return;
        }
        memcpy(top, ev->top, ev->n_top * sizeof *top);
    }
    c->logprobs[c->n_logprobs++] = (struct choice_logprob){.id = ev->token,
                                                           .of_prompt = of_prompt,
                                                           .has = ev->has_logprob,
                                                           .logprob = ev->logprob,
                                                           .n_top = ev->n_top,
                                                           .top = top,
                                                           .start = c->streamed};
}

void choice_prompt_token(struct choice *c, const struct generation_event *ev)
{
    if (c->with_logprobs) add_logprob(c, ev, true);
}

/* Pass what text_stream left in scratch on to the stop matcher. */
static bool pass_on(struct choice *c)
{
    size_t before = c->text.len;
    c->streamed += c->scratch.len;
    bool stopped = stop_matcher_push(&c->stops, c->scratch.data, c->scratch.len, &c->text);
    c->passed += c->text.len - before;
    c->failed |= c->scratch.failed || c->text.failed;
    buf_clear(&c->scratch);
    return stopped;
}

static bool is_eos(const struct choice *c, int32_t token)
{
    for (uint32_t i = 0; i < c->n_eos; i++)
        if (c->eos[i] == token) return true;
    return false;
}

bool choice_token(struct choice *c, const struct generation_event *ev)
{
    c->n_tokens++;
    if (!ids_push(&c->ids, ev->token)) c->failed = true;
    if (is_eos(c, ev->token)) return false; /* counted, but no part of the answer's text */
    if (c->with_logprobs) add_logprob(c, ev, false);
    text_stream_push(&c->stream, ev->token, &c->scratch);
    if (!pass_on(c)) return false;
    c->end = CHOICE_STOP;
    return true;
}

void choice_finish(struct choice *c, bool stopped_by_eos)
{
    if (c->end != CHOICE_OPEN) return;
    text_stream_flush(&c->stream, &c->scratch);
    /* The last character, made whole as U+FFFD, may still complete a stop string. */
    if (pass_on(c)) {
        c->end = CHOICE_STOP;
        return;
    }
    size_t before = c->text.len;
    stop_matcher_flush(&c->stops, &c->text);
    c->passed += c->text.len - before;
    c->failed |= c->text.failed;
    c->end = stopped_by_eos ? CHOICE_STOP : CHOICE_LENGTH;
}

size_t choice_ready_logprobs(const struct choice *c)
{
    bool cut = c->stops.matched >= 0;
    if (!cut && c->passed == c->streamed && c->stream.n_pending == 0) return c->n_logprobs;
    if (!cut && c->end != CHOICE_OPEN) return c->n_logprobs;
    size_t n = 0;
    while (n < c->n_logprobs && (c->logprobs[n].of_prompt || c->logprobs[n].start < c->passed))
        n++;
    return n;
}

void choice_drop(struct choice *c, size_t n_logprobs)
{
    free_tops(c, n_logprobs);
    c->n_logprobs -= n_logprobs;
    if (n_logprobs > 0)
        memmove(c->logprobs, c->logprobs + n_logprobs, c->n_logprobs * sizeof *c->logprobs);
    buf_clear(&c->text);
    c->ids.len = 0;
}
