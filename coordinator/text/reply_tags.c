/* Calls as tags around names and values:
 *
 *   Qwen3-Coder   <tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>
 *   GLM 4.5       <tool_call>NAME\n<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n</tool_call>
 *
 * Values are plain text, so what they are in JSON is the tool's schema to say: a string where it says so, else what the
 * text is as JSON, else a string. */
#include <stdio.h>
#include <string.h>

#include "coordinator/text/reply_grammar.h"

enum { CALL, FUNCTION, PARAMETER, PARAMETER_CLOSE, FUNCTION_CLOSE, CALL_CLOSE };
enum {
    ARG_KEY = 1,
    ARG_KEY_CLOSE,
    ARG_VALUE,
    ARG_VALUE_CLOSE
}; /* GLM's; CALL and CALL_CLOSE are the same */
enum { OPEN, NAME, BETWEEN, KEY, BEFORE_VALUE, VALUE, TAIL };

#define BIT(m) (1u << (m))

static bool is_glm(const struct reply_parser *p)
{
    return !p->tools->python;
}

static void between(struct reply_parser *p)
{
    p->state = BETWEEN;
    reply_enable(p, is_glm(p) ? BIT(ARG_KEY) | BIT(CALL_CLOSE)
                              : BIT(PARAMETER) | BIT(FUNCTION_CLOSE) | BIT(CALL_CLOSE));
}

static void begin_name(struct reply_parser *p)
{
    buf_clear(&p->name);
    p->any_value = false;
    p->state = NAME;
    reply_enable(p, is_glm(p) ? BIT(ARG_KEY) | BIT(CALL_CLOSE) : 0);
}

static void begin_key(struct reply_parser *p)
{
    buf_clear(&p->key);
    p->state = KEY;
    reply_enable(p, is_glm(p) ? BIT(ARG_KEY_CLOSE) : 0);
}

void reply_tags_begin(struct reply_parser *p, int marker)
{
    p->state = OPEN;
    if (is_glm(p) || marker == FUNCTION)
        begin_name(p);
    else
        reply_enable(p, BIT(FUNCTION) | BIT(CALL_CLOSE));
}

/* ---- values ---- */

static bool is_json(const char *s, size_t n)
{
    struct json_scanner scanner = {0};
    for (size_t i = 0; i < n; i++) {
        enum json_scan r = json_scanner_byte(&scanner, s[i]);
        if (r == JSON_SCAN_DONE) return i + 1 == n;
        if (r != JSON_SCAN_MORE) return false;
    }
    return json_scanner_may_end(&scanner);
}

static const char *schema_type(const struct reply_parser *p)
{
    const json_t *function = reply_tool(p, p->name.data, p->name.len),
                 *properties =
                     json_object_get(json_object_get(function, "parameters"), "properties");
    /* A key of a schema is a string without zero bytes; one that holds any is not in it. */
    if (memchr(p->key.data, 0, p->key.len) != NULL) return NULL;
    return json_string_value(json_object_get(json_object_get(properties, p->key.data), "type"));
}

static void put_value(struct reply_parser *p, struct buf *out)
{
    static const char *const python[][2] = {{"True", "true"}, {"False", "false"}, {"None", "null"}};
    const char *s = p->value.len > 0 ? p->value.data : "";
    size_t n = p->value.len;
    for (size_t i = 0; i < 3 && p->tools->python; i++)
        if (n == strlen(python[i][0]) && memcmp(s, python[i][0], n) == 0) {
            buf_puts(out, python[i][1]);
            return;
        }
    if (n > 0 && is_json(s, n))
        buf_append(out, s, n);
    else
        buf_put_json_string(out, s, n);
}

/* One newline each way belongs to the tags. */
static void strip_newlines(struct buf *b)
{
    if (b->len > 0 && b->data[b->len - 1] == '\n') b->len--;
    if (b->len > 0 && b->data[0] == '\n') buf_consume(b, 1);
}

static void put_text_byte(struct reply_parser *p, char c)
{
    char escaped[8];
    if (c == '"' || c == '\\')
        snprintf(escaped, sizeof escaped, "\\%c", c);
    else if (c == '\n')
        snprintf(escaped, sizeof escaped, "\\n");
    else if ((unsigned char)c < 0x20)
        snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned)c);
    else
        snprintf(escaped, sizeof escaped, "%c", c);
    reply_call_arguments(p, escaped, strlen(escaped));
}

/* A byte of a string; the newlines of the tags are left out here. */
static void text_byte(struct reply_parser *p, char c)
{
    bool first = !p->tag.begun;
    p->tag.begun = true;
    if (is_glm(p)) {
        put_text_byte(p, c);
        return;
    }
    if (first && c == '\n') return;
    if (p->tag.newline) put_text_byte(p, '\n');
    p->tag.newline = c == '\n';
    if (c != '\n') put_text_byte(p, c);
}

static void begin_value(struct reply_parser *p)
{
    const char *type = schema_type(p);
    struct buf out = {0};
    buf_clear(&p->value);
    p->tag.text = type != NULL && strcmp(type, "string") == 0;
    p->tag.begun = p->tag.newline = false;
    p->state = VALUE;
    reply_enable(p, is_glm(p) ? BIT(ARG_VALUE_CLOSE) : BIT(PARAMETER_CLOSE));
    if (!p->tag.text) return;
    buf_puts(&out, p->any_value ? ", " : "{");
    buf_put_json_string(&out, p->key.data, p->key.len);
    buf_puts(&out, ": \"");
    p->failed |= out.failed;
    if (!out.failed) reply_call_arguments(p, out.data, out.len);
    buf_free(&out);
}

static void end_value(struct reply_parser *p)
{
    struct buf out = {0};
    if (p->tag.text) {
        buf_putc(&out, '"');
    } else {
        if (!is_glm(p)) strip_newlines(&p->value);
        buf_puts(&out, p->any_value ? ", " : "{");
        buf_put_json_string(&out, p->key.data, p->key.len);
        buf_puts(&out, ": ");
        put_value(p, &out);
    }
    p->failed |= out.failed;
    if (!out.failed) reply_call_arguments(p, out.data, out.len);
    buf_free(&out);
    p->any_value = true;
    between(p);
}

/* ---- bytes and markers ---- */

static void end_name(struct reply_parser *p)
{
    while (p->name.len > 0 && reply_is_space(p->name.data[p->name.len - 1]))
        p->name.len--;
    if (reply_call_begin(p)) between(p);
}

static void end_call(struct reply_parser *p)
{
    reply_call_arguments(p, p->any_value ? "}" : "{}", p->any_value ? 1 : 2);
    reply_call_end(p);
    p->state = TAIL;
    reply_enable(p, BIT(CALL_CLOSE) | p->tools->begins);
}

static void end_key(struct reply_parser *p)
{
    if (p->key.len == 0) {
        reply_call_break(p);
        return;
    }
    if (!is_glm(p)) {
        begin_value(p);
        return;
    }
    p->state = BEFORE_VALUE;
    reply_enable(p, BIT(ARG_VALUE));
}

void reply_tags_byte(struct reply_parser *p, char c)
{
    switch (p->state) {
    case NAME:
        if (p->name.len == 0 && reply_is_space(c)) break;
        if (c == (is_glm(p) ? '\n' : '>')) {
            end_name(p);
            break;
        }
        buf_putc(&p->name, c);
        if (p->name.len > LIMIT_TOOL_NAME_BYTES) reply_call_break(p);
        break;
    case KEY:
        if (c == '>' && !is_glm(p)) {
            end_key(p);
            break;
        }
        buf_putc(&p->key, c);
        if (p->key.len > LIMIT_TOOL_NAME_BYTES) reply_call_break(p);
        break;
    case VALUE: /* no longer than the call may be */
        if (p->tag.text)
            text_byte(p, c);
        else
            buf_putc(&p->value, c);
        break;
    default:
        if (!reply_is_space(c)) reply_call_break(p);
        break;
    }
}

void reply_tags_marker(struct reply_parser *p, uint32_t marker)
{
    bool glm = is_glm(p), close = marker == CALL_CLOSE || (!glm && marker == FUNCTION_CLOSE);
    switch (p->state) {
    case OPEN:
        if (marker != FUNCTION) break;
        begin_name(p);
        return;
    case NAME: /* GLM's only, and only these end one */
        end_name(p);
        if (p->state != BETWEEN || p->phase != REPLY_IN_CALL) return;
        __attribute__((fallthrough));
    case BETWEEN:
        if (close) {
            end_call(p);
            if (p->phase == REPLY_IN_CALL && marker == CALL_CLOSE) reply_back_to_content(p);
            return;
        }
        begin_key(p);
        return;
    case KEY:
        end_key(p);
        return;
    case BEFORE_VALUE:
        begin_value(p);
        return;
    case VALUE:
        end_value(p);
        return;
    default:
        if (marker == CALL_CLOSE)
            reply_back_to_content(p);
        else if ((p->tools->begins >> marker & 1) != 0)
            reply_tags_begin(p, (int)marker);
        else
            break;
        return;
    }
    reply_call_break(p);
}

void reply_tags_end(struct reply_parser *p)
{
    if (p->state == TAIL)
        reply_back_to_content(p);
    else
        reply_call_break(p);
}
