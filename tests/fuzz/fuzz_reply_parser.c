/* A model's reply: a line of two parsers' names and flags, then the text; after a line "----" the tools offered, after
 * another a conversation, after another a chat template. However the text is cut, the events say the same together; a call
 * that ends is a whole JSON object; without a parser all is content.
 * Flags: t the prompt opened the reasoning, s markers are special tokens, 1 one call at most. */
// links: text
// covers: coordinator/text/reply_parser.c coordinator/text/reply_arguments.c coordinator/text/reply_json.c
// covers: coordinator/text/reply_sections.c coordinator/text/reply_tags.c coordinator/text/reply_harmony.c
// covers: coordinator/text/reply_format.c coordinator/text/json_scanner.c coordinator/text/marker_scanner.c
// max_len: 2048
#include <stdio.h>
#include <string.h>

#include "common/base/json.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/reply_grammar.h"
#include "coordinator/text/reply_parser.h"
#include "coordinator/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static struct tokenizer *tokenizer;

void fuzz_init(void)
{
    struct err why;
    FUZZ_CHECK(tokenizer_open(PROJECT_ROOT "/tests/data/models/tiny-qwen3_moe", &tokenizer, &why) ==
                   ERR_OK,
               "%s", why.text);
}

/* What the events say together: content, reasoning, and the calls one after another. */
struct heard {
    struct buf content, reasoning, calls, arguments;
    uint32_t n_calls, n_ended;
    bool open;
};

static void check_arguments(const struct heard *h)
{
    if (h->arguments.failed || !fuzz_calm()) return;
    json_error_t e;
    json_t *v = json_loadb(h->arguments.data, h->arguments.len, JSON_ALLOW_NUL, &e);
    /* What jansson cannot hold (a real beyond the range, a zero in a key, half a pair) is JSON all the same. */
    FUZZ_CHECK(v == NULL || json_is_object(v), "not an object: %s", h->arguments.data);
    FUZZ_CHECK(v != NULL || json_error_code(&e) != json_error_premature_end_of_input, "%s: %s",
               e.text, h->arguments.data);
    json_decref(v);
}

static void hear(void *ctx, const struct reply_event *ev)
{
    struct heard *h = ctx;
    switch (ev->kind) {
    case REPLY_CONTENT:
    case REPLY_REASONING:
        FUZZ_CHECK(ev->n > 0, "an empty piece");
        buf_append(ev->kind == REPLY_CONTENT ? &h->content : &h->reasoning, ev->text, ev->n);
        return;
    case REPLY_CALL_BEGIN:
        FUZZ_CHECK(!h->open && ev->call == h->n_calls, "call %u begins after %u", ev->call,
                   h->n_calls);
        FUZZ_CHECK(ev->n > 0 && ev->n <= LIMIT_TOOL_NAME_BYTES &&
                       ev->n_id <= LIMIT_TOOL_ID_BYTES + 32,
                   "a name of %zu bytes, an id of %zu", ev->n, ev->n_id);
        FUZZ_CHECK(++h->n_calls <= LIMIT_TOOL_CALLS, "%u calls", h->n_calls);
        h->open = true;
        buf_clear(&h->arguments);
        buf_printf(&h->calls, "\n[%u] ", ev->call);
        buf_append(&h->calls, ev->text, ev->n);
        buf_putc(&h->calls, ' ');
        buf_append(&h->calls, ev->id, ev->n_id);
        return;
    case REPLY_CALL_ARGUMENTS:
        FUZZ_CHECK(h->open && ev->call + 1 == h->n_calls, "arguments of call %u", ev->call);
        buf_append(&h->calls, ev->text, ev->n);
        buf_append(&h->arguments, ev->text, ev->n);
        return;
    case REPLY_CALL_END:
    case REPLY_CALL_BROKEN:
        FUZZ_CHECK(h->open && ev->call + 1 == h->n_calls, "the end of call %u", ev->call);
        h->open = false;
        buf_puts(&h->calls, ev->kind == REPLY_CALL_END ? " end" : " broken");
        h->n_ended += ev->kind == REPLY_CALL_END;
        if (ev->kind == REPLY_CALL_END) check_arguments(h);
        return;
    }
}

static void forget(struct heard *h)
{
    buf_free(&h->content);
    buf_free(&h->reasoning);
    buf_free(&h->calls);
    buf_free(&h->arguments);
}

static bool same(const struct buf *a, const struct buf *b)
{
    return a->len == b->len && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}

static size_t token_at(const struct reply_parser *p, const char *text, size_t n)
{
    for (uint32_t m = 0; m < MARKERS_MAX; m++) {
        size_t len = p->scanner.lens[m];
        if (len > 0 && len <= n && memcmp(text, p->scanner.texts[m], len) == 0 &&
            reply_parser_is_marker(p, text, len))
            return len;
    }
    return 0;
}

struct question {
    struct reply_format format;
    const json_t *tools;
    bool thinking, one;
    const char *text;
    size_t n;
};

/* Pieces of 1 to `most` bytes; special tokens go as such. False: no memory. */
static bool read_reply(const struct question *q, struct fuzz_dice *dice, uint32_t most,
                       struct heard *h)
{
    struct reply_parser p;
    reply_parser_init(&p, &q->format, q->tools, q->thinking, hear, h);
    if (q->one) p.max_calls = 1;
    size_t from = 0, piece = 1 + fuzz_below(dice, most);
    for (size_t at = 0; at <= q->n; at++) {
        size_t token = token_at(&p, q->text + at, q->n - at);
        if (token == 0 && at < q->n && at - from < piece) continue;
        reply_parser_text(&p, q->text + from, at - from);
        if (token > 0) {
            FUZZ_CHECK(!reply_parser_is_marker(&p, "<|no|>", 6), "not a marker");
            reply_parser_token(&p, "<|no|>", 6);
            reply_parser_token(&p, q->text + at, token);
        }
        from = at + token;
        if (token > 0) at = from - 1;
        piece = 1 + fuzz_below(dice, most);
    }
    reply_parser_finish(&p);
    bool failed = p.failed;
    FUZZ_CHECK(failed || !h->open, "a call without an end");
    reply_parser_deinit(&p);
    return !failed && !h->content.failed && !h->reasoning.failed && !h->calls.failed;
}

/* NULL in *out for what is no JSON. False: no memory. */
static bool json_of(const uint8_t *data, size_t n, json_t **out)
{
    struct err why;
    *out = NULL;
    return n == 0 ||
           json_parse((const char *)data, n, LIMIT_JSON_DEPTH, out, &why) != ERR_EXHAUSTED;
}

/* The shape of a conversation, and of the tools. */
static int check_history(const struct reply_format *f, const json_t *tools, const json_t *messages)
{
    json_t *out = NULL, *offered = NULL;
    struct err why;
    enum err_code rc = reply_format_offered(f, tools, &offered, &why);
    if (rc == ERR_OK) rc = reply_format_history(f, messages, &out, &why);
    FUZZ_CHECK(rc != ERR_OK || json_array_size(out) == json_array_size(messages), "%zu messages",
               json_array_size(out));
    json_decref(out);
    json_decref(offered);
    return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : (int)rc;
}

int fuzz_one(const uint8_t *data, size_t n)
{
    struct fuzz_dice dice = fuzz_dice(data, n);
    size_t n_head, n_reply, n_tools, n_messages;
    const uint8_t *reply = fuzz_part(&data, &n, &n_reply),
                  *tools_text = fuzz_part(&data, &n, &n_tools),
                  *messages_text = fuzz_part(&data, &n, &n_messages);
    const uint8_t *feed = n_reply > 0 ? memchr(reply, '\n', n_reply) : NULL;
    n_head = feed == NULL ? n_reply : (size_t)(feed - reply);
    char head[80] = "", tools_name[32] = "", reasoning_name[32] = "", flags[32] = "";
    memcpy(head, reply, n_head < sizeof head - 1 ? n_head : sizeof head - 1);
    sscanf(head, "%31s %31s %31s", tools_name, reasoning_name, flags);

    struct err why;
    struct question q = {.thinking = strchr(flags, 't') != NULL, .one = strchr(flags, '1') != NULL};
    struct chat_template *t = NULL;
    if (n > 0 && chat_template_parse((const char *)data, n, &t, &why) == ERR_EXHAUSTED)
        return FUZZ_NO_MEMORY;
    enum err_code rc =
        reply_format_find(t, strchr(flags, 'k') != NULL ? tokenizer : NULL, tools_name,
                          reasoning_name[0] == '\0' ? NULL : reasoning_name, &q.format, &why);
    chat_template_close(t);
    if (rc != ERR_OK) return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : -2 - (int)rc;
    FUZZ_CHECK(reply_format_tools_name(&q.format)[0] != '\0' &&
                   reply_format_reasoning_name(&q.format)[0] != '\0',
               "a name");
    if (strchr(flags, 's') != NULL) {
        q.format.special_tools = 0xff;
        q.format.special_reasoning = q.format.reasoning == &reply_harmony ? 0 : 0xff;
    }
    json_t *tools = NULL, *messages = NULL;
    bool short_of =
        !json_of(tools_text, n_tools, &tools) || !json_of(messages_text, n_messages, &messages);
    q.tools = json_is_array(tools) ? tools : NULL;
    q.text = feed == NULL ? "" : (const char *)feed + 1;
    q.n = feed == NULL ? 0 : n_reply - n_head - 1;
    struct heard whole = {0}, cut = {0};
    int result = 0;
    if (short_of || !read_reply(&q, &dice, UINT32_MAX, &whole) || !read_reply(&q, &dice, 9, &cut)) {
        result = FUZZ_NO_MEMORY;
    } else {
        FUZZ_CHECK(same(&whole.content, &cut.content), "content '%s' or '%s'", whole.content.data,
                   cut.content.data);
        FUZZ_CHECK(same(&whole.reasoning, &cut.reasoning), "reasoning '%s' or '%s'",
                   whole.reasoning.data, cut.reasoning.data);
        FUZZ_CHECK(same(&whole.calls, &cut.calls), "calls %s or %s", whole.calls.data,
                   cut.calls.data);
        FUZZ_CHECK(!q.one || whole.n_ended <= 1, "%u calls, one at most", whole.n_ended);
        if (q.format.tools == NULL && q.format.reasoning == NULL)
            FUZZ_CHECK(whole.content.len == q.n &&
                           (q.n == 0 || memcmp(whole.content.data, q.text, q.n) == 0),
                       "not all is content");
        q.thinking = reply_format_opens_reasoning(&q.format, q.text, q.n);
        result = json_is_array(messages) ? check_history(&q.format, q.tools, messages)
                                         : (int)whole.n_calls;
    }
    forget(&whole);
    forget(&cut);
    json_decref(tools);
    json_decref(messages);
    return result;
}
