/* Bytes go through the marker scanner one by one, so that where a piece ends makes no difference; what leaves is gathered
 * again until the piece ends or its kind changes.
 *
 *     START --<think>--> THINKING --</think>--> START --text--> TEXT --marker--> IN_CALL --> TEXT
 */
#include "coordinator/text/reply_parser.h"

#include <string.h>

#include "coordinator/text/reply_grammar.h"

#define REASONING_MARKERS (~0u << GRAMMAR_MARKERS)

bool reply_is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_newline(char c)
{
    return c == '\n' || c == '\r';
}

/* ---- what leaves ---- */

static void send(struct reply_parser *p, enum reply_event_kind kind, const struct buf *text)
{
    struct reply_event ev = {.kind = kind, .call = p->n_calls - 1, .text = "", .id = ""};
    if (text != NULL && text->len > 0) {
        ev.text = text->data;
        ev.n = text->len;
    }
    if (kind == REPLY_CALL_BEGIN && p->id.len > 0) {
        ev.id = p->id.data;
        ev.n_id = p->id.len;
    }
    if (!p->failed) p->sink(p->ctx, &ev);
}

static void flush_out(struct reply_parser *p)
{
    p->failed |= p->out.failed;
    if (p->out.len > 0) send(p, p->out_kind, &p->out);
    buf_clear(&p->out);
}

void reply_put(struct reply_parser *p, enum reply_event_kind kind, const char *bytes, size_t n)
{
    if (n == 0) return;
    if (p->out_kind != kind) flush_out(p);
    p->out_kind = kind;
    buf_append(&p->out, bytes, n);
}

static void put_buf(struct reply_parser *p, enum reply_event_kind kind, struct buf *b)
{
    p->failed |= b->failed;
    if (b->len > 0) reply_put(p, kind, b->data, b->len);
    buf_clear(b);
}

/* ---- markers that count ---- */

void reply_enable(struct reply_parser *p, uint32_t markers)
{
    p->expected = markers & ~REASONING_MARKERS;
    p->scanner.enabled = p->expected & ~p->format->special_tools;
}

static uint32_t reasoning_bit(unsigned marker)
{
    return 1u << (GRAMMAR_MARKERS + marker);
}

static void enable_content(struct reply_parser *p)
{
    if (p->whole != NULL) {
        reply_enable(p, ~0u);
        return;
    }
    uint32_t markers = p->tools != NULL ? p->tools->begins & ~p->format->special_tools : 0, own = 0;
    if (p->reasoning != NULL && !p->thought) own |= reasoning_bit(THINK_OPEN);
    if (p->reasoning != NULL && p->thought)
        own |= reasoning_bit(ANSWER_OPEN) | reasoning_bit(ANSWER_CLOSE);
    p->scanner.enabled = markers | (own & ~(p->format->special_reasoning << GRAMMAR_MARKERS));
}

static void enable_thinking(struct reply_parser *p)
{
    uint32_t own = reasoning_bit(THINK_CLOSE) | reasoning_bit(THINK_OPEN);
    p->scanner.enabled = own & ~(p->format->special_reasoning << GRAMMAR_MARKERS);
}

/* ---- calls ---- */

static void clear_call(struct reply_parser *p)
{
    p->failed |= p->raw.failed || p->name.failed || p->id.failed || p->pending.failed ||
                 p->key.failed || p->value.failed || p->arguments.decoded.failed;
    buf_clear(&p->raw);
    buf_clear(&p->name);
    buf_clear(&p->id);
    buf_clear(&p->pending);
    p->begun = false;
}

static void begin_call(struct reply_parser *p, int marker, const char *text, size_t n)
{
    clear_call(p);
    if (p->space.len > 0) buf_append(&p->raw, p->space.data, p->space.len);
    p->failed |= p->space.failed;
    buf_clear(&p->space);
    buf_append(&p->raw, text, n);
    p->phase = REPLY_IN_CALL;
    p->thought = true;
    p->drop_newlines = false;
    p->tools->begin(p, marker);
}

static bool good_name(const struct buf *name)
{
    if (name->len == 0 || name->len > LIMIT_TOOL_NAME_BYTES) return false;
    for (size_t i = 0; i < name->len; i++)
        if ((unsigned char)name->data[i] <= ' ' || name->data[i] == 0x7f) return false;
    return true;
}

bool reply_call_begin(struct reply_parser *p)
{
    if (!good_name(&p->name) || p->n_calls == LIMIT_TOOL_CALLS) {
        reply_call_break(p);
        return false;
    }
    flush_out(p);
    p->n_calls++;
    p->begun = true;
    send(p, REPLY_CALL_BEGIN, &p->name);
    put_buf(p, REPLY_CALL_ARGUMENTS, &p->pending);
    return true;
}

void reply_call_arguments(struct reply_parser *p, const char *bytes, size_t n)
{
    if (p->begun)
        reply_put(p, REPLY_CALL_ARGUMENTS, bytes, n);
    else
        buf_append(&p->pending, bytes, n);
}

void reply_call_end(struct reply_parser *p)
{
    if (!p->begun && !reply_call_begin(p)) return;
    flush_out(p);
    send(p, REPLY_CALL_END, NULL);
    p->n_ended++;
    clear_call(p);
}

void reply_call_break(struct reply_parser *p)
{
    if (p->begun) {
        flush_out(p);
        send(p, REPLY_CALL_BROKEN, NULL);
    }
    put_buf(p, REPLY_CONTENT, &p->raw);
    clear_call(p);
    p->phase = REPLY_TEXT;
    p->fresh = false;
    enable_content(p);
}

void reply_back_to_content(struct reply_parser *p)
{
    clear_call(p);
    p->phase = REPLY_TEXT;
    p->fresh = true;
    enable_content(p);
}

const json_t *reply_tool(const struct reply_parser *p, const char *name, size_t n)
{
    for (size_t i = 0; i < json_array_size(p->offered); i++) {
        const json_t *function = json_object_get(json_array_get(p->offered, i), "function"),
                     *known = json_object_get(function, "name");
        if (json_string_length(known) == n && n > 0 &&
            memcmp(json_string_value(known), name, n) == 0)
            return function;
    }
    return NULL;
}

/* ---- bytes and markers ---- */

static void content_byte(struct reply_parser *p, char c)
{
    if (p->drop_newlines && is_newline(c)) return;
    p->drop_newlines = false;
    const struct reply_grammar *r = p->reasoning;
    bool may_go =
        p->tools != NULL || (r != NULL && (!p->thought || r->markers[ANSWER_CLOSE] != NULL));
    if (may_go && (p->fresh ? reply_is_space(c) : is_newline(c))) {
        buf_putc(&p->space, c);
        return;
    }
    if (p->fresh && c == '{' && p->tools != NULL && p->tools->bare) {
        begin_call(p, -1, &c, 1);
        return;
    }
    put_buf(p, REPLY_CONTENT, &p->space);
    reply_put(p, REPLY_CONTENT, &c, 1);
    p->phase = REPLY_TEXT;
    p->fresh = false;
    if (p->thought) return;
    p->thought = true; /* too late to begin */
    enable_content(p);
}

static void thinking_byte(struct reply_parser *p, char c)
{
    if (p->drop_newlines && is_newline(c)) return;
    p->drop_newlines = false;
    if (is_newline(c)) {
        buf_putc(&p->space, c);
        return;
    }
    put_buf(p, REPLY_REASONING, &p->space);
    reply_put(p, REPLY_REASONING, &c, 1);
    /* A second "<think>" counts only where the first, the template's, was the last thing said. */
    p->scanner.enabled &= ~reasoning_bit(THINK_OPEN);
}

static void begin_thinking(struct reply_parser *p)
{
    buf_clear(&p->space);
    p->phase = REPLY_THINKING;
    p->drop_newlines = true;
    enable_thinking(p);
}

static void on_byte(struct reply_parser *p, char c)
{
    if (p->whole != NULL) {
        p->whole->byte(p, c);
        return;
    }
    switch (p->phase) {
    case REPLY_START:
    case REPLY_TEXT:
        content_byte(p, c);
        break;
    case REPLY_THINKING:
        thinking_byte(p, c);
        break;
    case REPLY_IN_CALL:
        buf_putc(&p->raw, c);
        if (p->raw.len > LIMIT_TOOL_CALL_BYTES)
            reply_call_break(p);
        else
            p->tools->byte(p, c);
        break;
    }
}

static void on_reasoning_marker(struct reply_parser *p, uint32_t marker)
{
    switch (marker) {
    case THINK_OPEN:
        if (p->phase == REPLY_START && !p->thought) begin_thinking(p);
        break;
    case THINK_CLOSE:
        if (p->phase != REPLY_THINKING) break;
        buf_clear(&p->space);
        p->phase = REPLY_START;
        p->fresh = p->drop_newlines = p->thought = true;
        enable_content(p);
        break;
    default: /* around the answer */
        if (p->phase == REPLY_IN_CALL) break;
        buf_clear(&p->space);
        p->drop_newlines = marker == ANSWER_OPEN;
        break;
    }
}

static void on_marker(struct reply_parser *p, uint32_t marker)
{
    const char *text = p->scanner.texts[marker];
    if (p->whole != NULL) {
        p->whole->marker(p, marker);
    } else if (marker >= GRAMMAR_MARKERS) {
        on_reasoning_marker(p, marker - GRAMMAR_MARKERS);
    } else if (p->phase == REPLY_IN_CALL) {
        buf_append(&p->raw, text, strlen(text));
        /* A special token comes whether it is expected or not. */
        if ((p->expected >> marker & 1) != 0)
            p->tools->marker(p, marker);
        else
            reply_call_break(p);
    } else if ((p->tools->begins >> marker & 1) != 0) {
        begin_call(p, (int)marker, text, strlen(text));
    }
}

static bool is_done(const struct reply_parser *p)
{
    return p->max_calls > 0 && p->n_ended >= p->max_calls;
}

static void drain(struct reply_parser *p, bool last)
{
    char byte;
    uint32_t marker;
    for (;;) {
        switch (marker_scanner_next(&p->scanner, last, &byte, &marker)) {
        case MARKER_NONE:
            return;
        case MARKER_BYTE:
            on_byte(p, byte);
            break;
        case MARKER_FOUND:
            on_marker(p, marker);
            break;
        }
    }
}

void reply_parser_text(struct reply_parser *p, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n && !is_done(p); i++) {
        marker_scanner_push(&p->scanner, bytes[i]);
        drain(p, false);
    }
    flush_out(p);
}

static int find_marker(const struct reply_parser *p, const char *text, size_t n)
{
    uint32_t special = p->format->special_tools | p->format->special_reasoning << GRAMMAR_MARKERS;
    for (uint32_t m = 0; m < MARKERS_MAX; m++)
        if ((special >> m & 1) != 0 && p->scanner.lens[m] == n &&
            memcmp(p->scanner.texts[m], text, n) == 0)
            return (int)m;
    return -1;
}

bool reply_parser_is_marker(const struct reply_parser *p, const char *text, size_t n)
{
    return n > 0 && find_marker(p, text, n) >= 0;
}

void reply_parser_token(struct reply_parser *p, const char *text, size_t n)
{
    int marker = find_marker(p, text, n);
    if (marker < 0 || is_done(p)) return;
    drain(p, true);
    on_marker(p, (uint32_t)marker);
    flush_out(p);
}

void reply_parser_finish(struct reply_parser *p)
{
    if (!is_done(p)) drain(p, true);
    if (p->whole != NULL)
        p->whole->end(p);
    else if (p->phase == REPLY_IN_CALL)
        p->tools->end(p);
    if (p->phase == REPLY_THINKING)
        put_buf(p, REPLY_REASONING, &p->space);
    else if (!p->fresh || (p->n_ended == 0 && !p->thought))
        put_buf(p, REPLY_CONTENT, &p->space);
    buf_clear(&p->space);
    flush_out(p);
}

/* ---- the beginning ---- */

static void add_markers(struct reply_parser *p, const struct reply_grammar *g, uint32_t first)
{
    for (uint32_t m = 0; g != NULL && m < GRAMMAR_MARKERS && g->markers[m] != NULL; m++)
        marker_scanner_set(&p->scanner, first + m, g->markers[m]);
}

void reply_parser_init(struct reply_parser *p, const struct reply_format *format,
                       const json_t *offered, bool thinking, reply_sink sink, void *ctx)
{
    *p = (struct reply_parser){.format = format,
                               .reasoning = format->reasoning,
                               .offered = offered,
                               .sink = sink,
                               .ctx = ctx,
                               .phase = REPLY_START,
                               .fresh = true};
    if (json_array_size(offered) > 0) p->tools = format->tools;
    /* Harmony's channels are there whether tools were offered or not. */
    if (format->reasoning == &reply_harmony || format->tools == &reply_harmony) {
        p->whole = &reply_harmony;
        add_markers(p, &reply_harmony, 0);
        reply_enable(p, ~0u);
        return;
    }
    add_markers(p, p->tools, 0);
    add_markers(p, p->reasoning, GRAMMAR_MARKERS);
    if (thinking && p->reasoning != NULL)
        begin_thinking(p);
    else
        enable_content(p);
}

void reply_parser_deinit(struct reply_parser *p)
{
    buf_free(&p->space);
    buf_free(&p->out);
    buf_free(&p->raw);
    buf_free(&p->name);
    buf_free(&p->id);
    buf_free(&p->pending);
    buf_free(&p->key);
    buf_free(&p->value);
    buf_free(&p->arguments.decoded);
    *p = (struct reply_parser){0};
}
