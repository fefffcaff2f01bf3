#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/utf8.h"
#include "coordinator/api/job.h"
#include "coordinator/text/tokenizer.h"

static void put_string(struct buf *b, const char *s)
{
    buf_put_json_string(b, s, strlen(s));
}

static void put_ids(struct buf *b, const struct ids *ids)
{
    buf_putc(b, '[');
    for (size_t i = 0; i < ids->len; i++)
        buf_printf(b, i == 0 ? "%d" : ",%d", ids->data[i]);
    buf_putc(b, ']');
}

/* JSON has no infinities; a token that cannot be drawn is as unlikely as a float can say. */
static void put_logprob(struct buf *b, float x)
{
    if (isnan(x))
        buf_puts(b, "null");
    else
        buf_printf(b, "%.9g", (double)(isinf(x) ? (x < 0 ? -9999.0f : 9999.0f) : x));
}

static const char *token_bytes(const struct job *j, int32_t id, size_t *n)
{
    const char *s = tokenizer_bytes(j->api->cfg.model.tokenizer, id, n);
    if (s == NULL) *n = 0;
    return s == NULL ? "" : s;
}

/* ---- logprobs ---- */

static void put_chat_token(const struct job *j, int32_t id, float logprob, struct buf *b)
{
    size_t n;
    const char *s = token_bytes(j, id, &n);
    buf_puts(b, "{\"token\":");
    buf_put_json_string(b, s, n);
    buf_puts(b, ",\"logprob\":");
    put_logprob(b, logprob);
    buf_puts(b, ",\"bytes\":[");
    for (size_t i = 0; i < n; i++)
        buf_printf(b, i == 0 ? "%u" : ",%u", (unsigned)(unsigned char)s[i]);
    buf_putc(b, ']');
}

static void put_chat_logprobs(const struct job *j, const struct choice *c, size_t n, struct buf *b)
{
    buf_puts(b, "{\"content\":[");
    for (size_t i = 0; i < n; i++) {
        const struct choice_logprob *l = &c->logprobs[i];
        if (i > 0) buf_putc(b, ',');
        put_chat_token(j, l->id, l->logprob, b);
        buf_puts(b, ",\"top_logprobs\":[");
        for (uint32_t k = 0; k < l->n_top; k++) {
            if (k > 0) buf_putc(b, ',');
            put_chat_token(j, l->top[k].id, l->top[k].logprob, b);
            buf_putc(b, '}');
        }
        buf_puts(b, "]}");
    }
    buf_puts(b, "],\"refusal\":null}");
}

/* In completions tokens are also keys, so bytes that are no text must stay distinct: OpenAI writes them "bytes:\xe2". */
static void put_completion_token(const struct job *j, int32_t id, struct buf *b)
{
    size_t n;
    const char *s = token_bytes(j, id, &n);
    if (utf8_valid(s, n)) {
        buf_put_json_string(b, s, n);
        return;
    }
    buf_puts(b, "\"bytes:");
    for (size_t i = 0; i < n; i++)
        buf_printf(b, "\\\\x%02x", (unsigned)(unsigned char)s[i]);
    buf_putc(b, '"');
}

static bool same_text(const struct job *j, int32_t a, int32_t b)
{
    size_t na, nb;
    const char *sa = token_bytes(j, a, &na), *sb = token_bytes(j, b, &nb);
    return na == nb && memcmp(sa, sb, na) == 0;
}

static void put_completion_top(const struct job *j, const struct choice_logprob *l, struct buf *b)
{
    bool any = false;
    buf_putc(b, '{');
    for (uint32_t k = 0; k < l->n_top; k++) {
        bool repeated = false; /* two ids of one text: the likelier one is shown */
        for (uint32_t m = 0; m < k; m++)
            repeated |= same_text(j, l->top[m].id, l->top[k].id);
        if (repeated) continue;
        if (any) buf_putc(b, ',');
        any = true;
        put_completion_token(j, l->top[k].id, b);
        buf_putc(b, ':');
        put_logprob(b, l->top[k].logprob);
    }
    buf_putc(b, '}');
}

/* Characters that begin in these bytes: right also where one character is spread over several tokens. */
static size_t characters_of(const char *s, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)s[i] & 0xc0) != 0x80;
    return count;
}

static void put_completion_logprobs(const struct job *j, struct choice *c, size_t n, struct buf *b)
{
    buf_puts(b, "{\"tokens\":[");
    for (size_t i = 0; i < n; i++) {
        if (i > 0) buf_putc(b, ',');
        put_completion_token(j, c->logprobs[i].id, b);
    }
    buf_puts(b, "],\"token_logprobs\":[");
    for (size_t i = 0; i < n; i++) {
        if (i > 0) buf_putc(b, ',');
        if (c->logprobs[i].has)
            put_logprob(b, c->logprobs[i].logprob);
        else
            buf_puts(b, "null");
    }
    buf_puts(b, "],\"top_logprobs\":");
    if (j->request.top_logprobs == 0) buf_puts(b, "null");
    for (size_t i = 0; i < n && j->request.top_logprobs > 0; i++) {
        buf_putc(b, i == 0 ? '[' : ',');
        if (c->logprobs[i].has)
            put_completion_top(j, &c->logprobs[i], b);
        else
            buf_puts(b, "null");
    }
    if (j->request.top_logprobs > 0) buf_puts(b, n == 0 ? "[]" : "]");
    buf_puts(b, ",\"text_offset\":[");
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        buf_printf(b, i == 0 ? "%zu" : ",%zu", c->text_offset);
        const char *s = token_bytes(j, c->logprobs[i].id, &bytes);
        c->text_offset += characters_of(s, bytes);
    }
    buf_puts(b, "]}");
}

/* ",\"logprobs\":.." with all that are ready; says how many. */
static size_t put_logprobs(const struct job *j, struct choice *c, struct buf *b)
{
    buf_puts(b, ",\"logprobs\":");
    if (!j->request.logprobs) {
        buf_puts(b, "null");
        return 0;
    }
    size_t n = choice_ready_logprobs(c);
    if (j->kind == REQUEST_CHAT)
        put_chat_logprobs(j, c, n, b);
    else
        put_completion_logprobs(j, c, n, b);
    return n;
}

/* ---- what whole replies and chunks share ---- */

static void put_usage(const struct job *j, struct buf *b)
{
    uint64_t prompt = 0, completion = 0, cached = 0;
    for (uint32_t i = 0; i < j->n_prompts; i++)
        prompt += j->prompts[i].ids.len;
    for (uint32_t i = 0; i < j->n_choices; i++) {
        completion += j->choices[i].choice.n_tokens;
        if (j->choices[i].sample == 0) cached += j->choices[i].n_cached;
    }
    buf_printf(b,
               "{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
               (unsigned long long)prompt, (unsigned long long)completion,
               (unsigned long long)(prompt + completion), (unsigned long long)cached);
}

static void put_opening(const struct job *j, bool chunk, struct buf *b)
{
    const char *object = j->kind == REQUEST_COMPLETION ? "text_completion"
                         : chunk                       ? "chat.completion.chunk"
                                                       : "chat.completion";
    buf_printf(b, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", j->id, object,
               (long long)j->created);
    put_string(b, j->api->cfg.model.id);
    buf_puts(b, ",\"choices\":[");
}

static void begin_chunk(const struct job *j, struct buf *b)
{
    buf_puts(b, "data: ");
    put_opening(j, true, b);
}

/* After the choices: usage null in every chunk but the last, when one was asked for. */
static void end_chunk(const struct job *j, struct buf *b)
{
    buf_puts(b, j->request.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
}

static const char *end_name(const struct choice *c)
{
    if (c->end == CHOICE_LENGTH) return "length";
    return c->read && c->message.n_ended > 0 ? "tool_calls" : "stop";
}

/* ---- chunks ---- */

void reply_chunk_role(const struct job *j, uint32_t index, struct buf *b)
{
    begin_chunk(j, b);
    buf_printf(
        b,
        "{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
        "\"finish_reason\":null}",
        index);
    if (j->request.return_token_ids && index == 0) {
        buf_puts(b, "],\"prompt_token_ids\":");
        put_ids(b, &j->prompts[0].ids);
        buf_puts(b, j->request.include_usage ? ",\"usage\":null}\n\n" : "}\n\n");
        return;
    }
    end_chunk(j, b);
}

bool reply_has_text(const struct job_choice *c)
{
    if (c->choice.text.len > 0) return true;
    if (c->choice.read && message_has_delta(&c->choice.message)) return true;
    if (c->job->request.echo && !c->echoed) return true;
    if (c->choice.end == CHOICE_OPEN) return false;
    /* At the end what has no text of its own still goes out: logprobs, ids. */
    return (c->choice.with_logprobs && choice_ready_logprobs(&c->choice) > 0) ||
           (c->job->request.return_token_ids && c->choice.ids.len > 0);
}

static void begin_choice(const struct choice *ch, struct buf *b)
{
    buf_printf(b, "{\"index\":%u,", ch->index);
}

/* A chunk for each part of a reply that is read; the last stays open, for what else its tokens bring. */
static void put_deltas(const struct job *j, const struct choice *ch, struct buf *b)
{
    size_t at = 0;
    buf_puts(b, "\"delta\":");
    if (!message_put_delta(&ch->message, &at, b)) buf_puts(b, "{\"content\":\"\"}");
    for (;;) {
        size_t end = b->len;
        buf_puts(b, ",\"logprobs\":null,\"finish_reason\":null}");
        end_chunk(j, b);
        begin_chunk(j, b);
        begin_choice(ch, b);
        buf_puts(b, "\"delta\":");
        if (message_put_delta(&ch->message, &at, b)) continue;
        if (!b->failed) b->len = end; /* there was no other */
        return;
    }
}

void reply_chunk_text(const struct job *j, struct job_choice *c, struct buf *b)
{
    struct choice *ch = &c->choice;
    begin_chunk(j, b);
    begin_choice(ch, b);
    if (ch->read) {
        put_deltas(j, ch, b);
    } else if (j->kind == REQUEST_CHAT) {
        buf_puts(b, "\"delta\":{\"content\":");
        buf_put_json_string(b, ch->text.data, ch->text.len);
        buf_putc(b, '}');
    } else {
        struct buf text = {0};
        bool echo = j->request.echo && !c->echoed;
        if (echo) buf_append(&text, c->prompt->echo.data, c->prompt->echo.len);
        buf_append(&text, ch->text.data, ch->text.len);
        buf_puts(b, "\"text\":");
        buf_put_json_string(b, text.data, text.len);
        if (text.failed) b->failed = true;
        buf_free(&text);
        if (j->request.return_token_ids && !c->echoed) {
            buf_puts(b, ",\"prompt_token_ids\":");
            put_ids(b, &c->prompt->ids);
        }
        c->echoed = true;
    }
    size_t n = put_logprobs(j, ch, b);
    if (j->request.return_token_ids) {
        buf_puts(b, ",\"token_ids\":");
        put_ids(b, &ch->ids);
    }
    buf_puts(b, ",\"finish_reason\":null}");
    end_chunk(j, b);
    choice_drop(ch, n);
}

void reply_chunk_finish(const struct job *j, struct job_choice *c, struct buf *b)
{
    begin_chunk(j, b);
    buf_printf(b, "{\"index\":%u,%s,\"logprobs\":null,\"finish_reason\":\"%s\"}", c->choice.index,
               j->kind == REQUEST_CHAT ? "\"delta\":{}" : "\"text\":\"\"", end_name(&c->choice));
    end_chunk(j, b);
}

void reply_chunk_usage(const struct job *j, struct buf *b)
{
    begin_chunk(j, b);
    buf_puts(b, "],\"usage\":");
    put_usage(j, b);
    buf_puts(b, "}\n\n");
}

/* ---- the whole reply ---- */

static void put_whole_choice(const struct job *j, struct job_choice *c, struct buf *b)
{
    struct choice *ch = &c->choice;
    begin_choice(ch, b);
    if (ch->read) {
        buf_puts(b, "\"message\":");
        message_put(&ch->message, b);
    } else if (j->kind == REQUEST_CHAT) {
        buf_puts(b, "\"message\":{\"role\":\"assistant\",\"content\":");
        buf_put_json_string(b, ch->text.data, ch->text.len);
        buf_puts(b, ",\"refusal\":null}");
    } else {
        struct buf text = {0};
        if (j->request.echo) buf_append(&text, c->prompt->echo.data, c->prompt->echo.len);
        buf_append(&text, ch->text.data, ch->text.len);
        buf_puts(b, "\"text\":");
        buf_put_json_string(b, text.data, text.len);
        if (text.failed) b->failed = true;
        buf_free(&text);
        if (j->request.return_token_ids) {
            buf_puts(b, ",\"prompt_token_ids\":");
            put_ids(b, &c->prompt->ids);
        }
    }
    put_logprobs(j, ch, b);
    if (j->request.return_token_ids) {
        buf_puts(b, ",\"token_ids\":");
        put_ids(b, &ch->ids);
    }
    buf_printf(b, ",\"finish_reason\":\"%s\"}", end_name(ch));
}

void reply_whole(const struct job *j, struct buf *b)
{
    put_opening(j, false, b);
    for (uint32_t i = 0; i < j->n_choices; i++) {
        if (i > 0) buf_putc(b, ',');
        put_whole_choice(j, &j->choices[i], b);
    }
    buf_puts(b, "],\"usage\":");
    put_usage(j, b);
    if (j->request.return_token_ids && j->kind == REQUEST_CHAT) {
        buf_puts(b, ",\"prompt_token_ids\":");
        put_ids(b, &j->prompts[0].ids);
    }
    buf_putc(b, '}');
}
