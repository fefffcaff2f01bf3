/* Calls as JSON objects: Hermes and Qwen (<tool_call>{..}</tool_call>), Granite (<|tool_call|>[{..}, {..}]), Llama 3
 * ({..} alone, or after <|python_tag|>). Marker 0 begins, marker 1, where there is one, ends.
 * Llama 3 calls its built-in tools as <|python_tag|>NAME.call(KEY="VALUE", ..): values are strings in which nothing is
 * escaped, so a quote ends one only where a comma or a parenthesis follows. */
#include <string.h>

#include "coordinator/text/reply_grammar.h"

enum { BEFORE, OBJECT, BETWEEN, NEXT, TAIL };
/* of NAME.call(..) */
enum { PY_NAME = TAIL + 1, PY_ARGUMENT, PY_KEY, PY_EQUALS, PY_VALUE, PY_QUOTE };

static void begin_object(struct reply_parser *p, char c)
{
    reply_enable(p, 0); /* a string in it may spell a marker */
    reply_object_reset(p);
    p->state = OBJECT;
    if (reply_object_byte(p, c) == JSON_SCAN_BROKEN) reply_call_break(p);
}

void reply_json_begin(struct reply_parser *p, int marker)
{
    p->list = false;
    p->state = BEFORE;
    reply_enable(p, p->tools->closed ? 2u : 0);
    if (marker < 0) begin_object(p, '{');
}

static void object_byte(struct reply_parser *p, char c)
{
    switch (reply_object_byte(p, c)) {
    case JSON_SCAN_MORE:
        return;
    case JSON_SCAN_DONE:
        reply_call_end(p);
        if (p->phase != REPLY_IN_CALL) return;
        p->state = p->list ? BETWEEN : TAIL;
        reply_enable(p, p->tools->closed ? 3u : p->tools->begins);
        return;
    default:
        reply_call_break(p);
        return;
    }
}

/* ---- NAME.call(KEY="VALUE", ..) ---- */

static void begin_python(struct reply_parser *p, char c)
{
    buf_clear(&p->name);
    buf_putc(&p->name, c);
    p->any_value = false;
    p->state = PY_NAME;
}

/* Code that calls something else is the model's own. */
static bool end_python_name(struct reply_parser *p)
{
    static const char behind[] = ".call";
    size_t n_behind = sizeof behind - 1;
    if (p->name.len <= n_behind) return false;
    p->name.len -= n_behind;
    if (memcmp(p->name.data + p->name.len, behind, n_behind) != 0 ||
        reply_tool(p, p->name.data, p->name.len) == NULL)
        return false;
    p->state = PY_ARGUMENT;
    return true;
}

static void end_python_value(struct reply_parser *p)
{
    struct buf out = {0};
    buf_puts(&out, p->any_value ? ", " : "{");
    buf_put_json_string(&out, p->key.data, p->key.len);
    buf_puts(&out, ": ");
    buf_put_json_string(&out, p->value.len > 0 ? p->value.data : "", p->value.len);
    p->failed |= out.failed;
    if (!out.failed) reply_call_arguments(p, out.data, out.len);
    buf_free(&out);
    p->any_value = true;
}

static void end_python(struct reply_parser *p)
{
    reply_call_arguments(p, p->any_value ? "}" : "{}", p->any_value ? 1 : 2);
    reply_call_end(p);
    if (p->phase != REPLY_IN_CALL) return;
    p->state = TAIL;
    reply_enable(p, p->tools->begins);
}

static void python_byte(struct reply_parser *p, char c)
{
    bool good = true;
    switch (p->state) {
    case PY_NAME:
        if (c == '(')
            good = end_python_name(p);
        else
            buf_putc(&p->name, c);
        good = good && p->name.len <= LIMIT_TOOL_NAME_BYTES + 8;
        break;
    case PY_ARGUMENT:
        if (reply_is_space(c)) break;
        if (c == ')') {
            end_python(p);
            break;
        }
        buf_clear(&p->key);
        p->state = PY_KEY;
        __attribute__((fallthrough));
    case PY_KEY:
        if (c == '=')
            p->state = PY_EQUALS;
        else
            buf_putc(&p->key, c);
        good = p->key.len > 0 && p->key.len <= LIMIT_TOOL_NAME_BYTES;
        break;
    case PY_EQUALS:
        buf_clear(&p->value);
        p->state = PY_VALUE;
        good = c == '"';
        break;
    case PY_VALUE:
        if (c == '"')
            p->state = PY_QUOTE;
        else
            buf_putc(&p->value, c);
        break;
    default: /* a quote: its last? */
        if (c == ',' || c == ')') {
            end_python_value(p);
            p->state = PY_ARGUMENT;
            if (c == ')') end_python(p);
            break;
        }
        buf_putc(&p->value, '"');
        if (c == '"') break;
        buf_putc(&p->value, c);
        p->state = PY_VALUE;
        break;
    }
    if (!good) reply_call_break(p);
}

/* ---- all of them ---- */

void reply_json_byte(struct reply_parser *p, char c)
{
    if (p->state == OBJECT) {
        object_byte(p, c);
        return;
    }
    if (p->state >= PY_NAME) {
        python_byte(p, c);
        return;
    }
    if (reply_is_space(c)) return;
    switch (p->state) {
    case BEFORE:
        if (c == '[' && !p->list && !p->tools->bare)
            p->list = true;
        else if (p->tools->bare && c != '{')
            begin_python(p, c);
        else
            begin_object(p, c);
        break;
    case BETWEEN:
        if (c == ',') {
            p->state = NEXT;
        } else if (c == ']') {
            buf_clear(&p->raw);
            p->state = TAIL;
        } else {
            reply_call_break(p);
        }
        break;
    case NEXT:
        begin_object(p, c);
        break;
    default: /* behind it */
        if (p->tools->bare && (c == ';' || c == ',')) break;
        if (p->tools->bare && c == '{')
            begin_object(p, c);
        else if (!p->tools->closed)
            reply_call_break(p); /* no call: an answer goes on */
        break;                   /* else what stands before the end marker is of no use */
    }
}

void reply_json_marker(struct reply_parser *p, uint32_t marker)
{
    if (p->state == TAIL && p->tools->closed && marker == 1) {
        reply_back_to_content(p);
    } else if (p->state == TAIL && (p->tools->begins >> marker & 1) != 0) {
        reply_json_begin(p, (int)marker);
    } else {
        reply_call_break(p);
    }
}

/* A tail without its end marker: white space, or text that would be lost. */
void reply_json_end(struct reply_parser *p)
{
    bool text = p->state == BEFORE || p->state == OBJECT || p->state >= PY_NAME;
    for (size_t i = 0; i < p->raw.len && p->state == TAIL && !text; i++)
        text = !reply_is_space(p->raw.data[i]);
    if (text)
        reply_call_break(p);
    else
        reply_back_to_content(p);
}
