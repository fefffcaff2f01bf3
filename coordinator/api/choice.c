#include "coordinator/api/choice.h"

#include <string.h>

#include "common/base/mem.h"
#include "coordinator/text/tokenizer.h"

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

void choice_read(struct choice *c, const struct reply_format *format, const struct request *r,
                 bool thinking, uint64_t serial)
{
    c->read = true;
    c->one_call = r->one_call;
    message_init(&c->message, serial ^ (uint64_t)c->index << 40);
    reply_parser_init(&c->parser, format, r->tools, thinking, message_event, &c->message);
    if (c->one_call) c->parser.max_calls = 1;
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
    if (c->read) {
        reply_parser_deinit(&c->parser);
        message_deinit(&c->message);
    }
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

/* Give what has passed to the reader. */
static void read_text(struct choice *c)
{
    if (!c->read) return;
    reply_parser_text(&c->parser, c->text.data, c->text.len);
    buf_clear(&c->text);
    c->failed |= c->parser.failed || c->message.failed;
}

static void finish_reading(struct choice *c)
{
    if (!c->read) return;
    read_text(c);
    reply_parser_finish(&c->parser);
    c->failed |= c->parser.failed || c->message.failed;
}

static void flush_stops(struct choice *c)
{
    size_t before = c->text.len;
    stop_matcher_flush(&c->stops, &c->text);
    c->passed += c->text.len - before;
    c->failed |= c->text.failed;
}

/* A special token is no text, but may mark what follows; what came before it is whole then. True: stopped. */
static bool read_special(struct choice *c, int32_t token)
{
    size_t n;
    const char *text = tokenizer_bytes(c->stream.tokenizer, token, &n);
    if (text == NULL || !reply_parser_is_marker(&c->parser, text, n)) return false;
    text_stream_flush(&c->stream, &c->scratch);
    if (pass_on(c)) return true;
    flush_stops(c);
    read_text(c);
    reply_parser_token(&c->parser, text, n);
    return false;
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
    bool stopped = c->read && tokenizer_is_special(c->stream.tokenizer, ev->token) &&
                   read_special(c, ev->token);
    text_stream_push(&c->stream, ev->token, &c->scratch);
    if (!stopped) stopped = pass_on(c);
    read_text(c);
    if (!stopped && !(c->one_call && c->message.n_ended > 0)) return false;
    finish_reading(c);
    c->end = CHOICE_STOP;
    return true;
}

void choice_finish(struct choice *c, bool stopped_by_eos)
{
    if (c->end != CHOICE_OPEN) return;
    text_stream_flush(&c->stream, &c->scratch);
    /* The last character, made whole as U+FFFD, may still complete a stop string. */
    if (pass_on(c)) {
        finish_reading(c);
        c->end = CHOICE_STOP;
        return;
    }
    flush_stops(c);
    finish_reading(c);
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
    if (c->read) message_drop(&c->message);
    c->ids.len = 0;
}
