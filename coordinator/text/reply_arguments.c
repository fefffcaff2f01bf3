/* A call's arguments, and the object that holds name and arguments: what several grammars share. */
#include <string.h>

#include "coordinator/text/reply_grammar.h"

/* ---- the arguments' value ---- */

enum { ARGS_BEFORE, ARGS_OBJECT, ARGS_QUOTED, ARGS_QUOTED_OBJECT, ARGS_QUOTED_AFTER };

void reply_arguments_reset(struct reply_parser *p)
{
    p->arguments.state = ARGS_BEFORE;
    p->arguments.scanner = (struct json_scanner){0};
    p->arguments.text = (struct json_text){0};
}

/* One byte of an object, which is passed on unless it makes the object impossible. */
static enum json_scan object_byte(struct reply_parser *p, char c)
{
    enum json_scan r = json_scanner_byte(&p->arguments.scanner, c);
    if (r != JSON_SCAN_BROKEN) reply_call_arguments(p, &c, 1);
    return r;
}

/* What a byte of the string stands for, as far as it is known. */
static enum json_scan quoted_bytes(struct reply_parser *p)
{
    const struct buf *b = &p->arguments.decoded;
    for (size_t i = 0; i < b->len; i++) {
        char c = b->data[i];
        if (p->arguments.state == ARGS_QUOTED && c == '{') p->arguments.state = ARGS_QUOTED_OBJECT;
        if (p->arguments.state != ARGS_QUOTED_OBJECT) {
            if (!reply_is_space(c)) return JSON_SCAN_BROKEN;
            continue;
        }
        enum json_scan r = object_byte(p, c);
        if (r == JSON_SCAN_BROKEN) return r;
        if (r == JSON_SCAN_DONE) p->arguments.state = ARGS_QUOTED_AFTER;
    }
    return JSON_SCAN_MORE;
}

enum json_scan reply_arguments_byte(struct reply_parser *p, char c)
{
    switch (p->arguments.state) {
    case ARGS_BEFORE:
        if (reply_is_space(c)) return JSON_SCAN_MORE;
        if (c == '"') p->arguments.state = ARGS_QUOTED;
        if (c == '"') return JSON_SCAN_MORE;
        if (c != '{') return JSON_SCAN_BROKEN;
        p->arguments.state = ARGS_OBJECT;
        return object_byte(p, c);
    case ARGS_OBJECT:
        return object_byte(p, c);
    default: {
        struct buf *decoded = &p->arguments.decoded;
        buf_clear(decoded);
        enum json_scan end = json_text_byte(&p->arguments.text, c, decoded);
        if (end == JSON_SCAN_BROKEN || quoted_bytes(p) == JSON_SCAN_BROKEN) return JSON_SCAN_BROKEN;
        if (end != JSON_SCAN_DONE) return JSON_SCAN_MORE;
        if (p->arguments.state == ARGS_QUOTED) reply_call_arguments(p, "{}", 2); /* "" */
        return p->arguments.state == ARGS_QUOTED_OBJECT ? JSON_SCAN_BROKEN : JSON_SCAN_DONE;
    }
    }
}

/* ---- the object ---- */

enum {
    OBJ_OPEN,
    OBJ_FIRST,
    OBJ_KEY,
    OBJ_IN_KEY,
    OBJ_COLON,
    OBJ_VALUE,
    OBJ_NAME,
    OBJ_ARGUMENTS,
    OBJ_OTHER,
    OBJ_AFTER
};

void reply_object_reset(struct reply_parser *p)
{
    memset(&p->object, 0, sizeof p->object);
    buf_clear(&p->key);
    reply_arguments_reset(p);
}

static bool key_is(const struct reply_parser *p, const char *text)
{
    return p->key.len == strlen(text) && memcmp(p->key.data, text, p->key.len) == 0;
}

static bool key_of_arguments(const struct reply_parser *p)
{
    return key_is(p, "arguments") || key_is(p, "parameters");
}

/* An answer in JSON is not to be mistaken for a call, so where nothing marks a call it has nothing but a call's keys. */
static bool key_may_be(const struct reply_parser *p)
{
    return !p->tools->bare || key_of_arguments(p) || key_is(p, "name") || key_is(p, "type") ||
           key_is(p, "id");
}

static enum json_scan begin_value(struct reply_parser *p, char c)
{
    if (key_is(p, "name")) {
        if (c != '"' || p->object.has_name) return JSON_SCAN_BROKEN;
        p->object.text = (struct json_text){0};
        p->object.state = OBJ_NAME;
        return JSON_SCAN_MORE;
    }
    if (key_of_arguments(p) && c != 'n') {
        if (p->object.has_arguments) return JSON_SCAN_BROKEN;
        p->object.has_arguments = true;
        p->object.state = OBJ_ARGUMENTS;
        if (p->object.has_name && !reply_call_begin(p)) return JSON_SCAN_MORE;
        return reply_arguments_byte(p, c);
    }
    p->object.scanner = (struct json_scanner){0};
    p->object.state = OBJ_OTHER;
    return json_scanner_byte(&p->object.scanner, c);
}

static enum json_scan end_object(struct reply_parser *p)
{
    if (!p->object.has_name) return JSON_SCAN_BROKEN;
    if (!p->object.has_arguments) {
        if (p->tools->bare) return JSON_SCAN_BROKEN;
        reply_call_arguments(p, "{}", 2);
    }
    return JSON_SCAN_DONE;
}

static enum json_scan name_byte(struct reply_parser *p, char c)
{
    enum json_scan r = json_text_byte(&p->object.text, c, &p->name);
    if (p->name.len > LIMIT_TOOL_NAME_BYTES) return JSON_SCAN_BROKEN;
    if (r != JSON_SCAN_DONE) return r;
    if (p->tools->bare && reply_tool(p, p->name.data, p->name.len) == NULL) return JSON_SCAN_BROKEN;
    p->object.has_name = true;
    p->object.state = OBJ_AFTER;
    if (p->object.has_arguments) reply_call_begin(p); /* they have waited for it */
    return JSON_SCAN_MORE;
}

static enum json_scan after_value(struct reply_parser *p, char c)
{
    if (reply_is_space(c)) return JSON_SCAN_MORE;
    if (c == '}') return end_object(p);
    p->object.state = OBJ_KEY;
    return c == ',' ? JSON_SCAN_MORE : JSON_SCAN_BROKEN;
}

enum json_scan reply_object_byte(struct reply_parser *p, char c)
{
    enum json_scan r = JSON_SCAN_MORE;
    switch (p->object.state) {
    case OBJ_OPEN:
        p->object.state = OBJ_FIRST;
        return c == '{' ? JSON_SCAN_MORE : JSON_SCAN_BROKEN;
    case OBJ_FIRST:
    case OBJ_KEY:
        if (reply_is_space(c)) return JSON_SCAN_MORE;
        if (c == '}' && p->object.state == OBJ_FIRST) return end_object(p);
        buf_clear(&p->key);
        p->object.text = (struct json_text){0};
        p->object.state = OBJ_IN_KEY;
        return c == '"' ? JSON_SCAN_MORE : JSON_SCAN_BROKEN;
    case OBJ_IN_KEY:
        r = json_text_byte(&p->object.text, c, &p->key);
        if (r != JSON_SCAN_DONE) return p->key.len > LIMIT_TOOL_NAME_BYTES ? JSON_SCAN_BROKEN : r;
        p->object.state = OBJ_COLON;
        return key_may_be(p) ? JSON_SCAN_MORE : JSON_SCAN_BROKEN;
    case OBJ_COLON:
        if (reply_is_space(c)) return JSON_SCAN_MORE;
        p->object.state = OBJ_VALUE;
        return c == ':' ? JSON_SCAN_MORE : JSON_SCAN_BROKEN;
    case OBJ_VALUE:
        return reply_is_space(c) ? JSON_SCAN_MORE : begin_value(p, c);
    case OBJ_NAME:
        return name_byte(p, c);
    case OBJ_ARGUMENTS:
        r = reply_arguments_byte(p, c);
        break;
    case OBJ_OTHER:
        r = json_scanner_byte(&p->object.scanner, c);
        break;
    default:
        return after_value(p, c);
    }
    if (r == JSON_SCAN_BROKEN || r == JSON_SCAN_MORE) return r;
    p->object.state = OBJ_AFTER;
    return r == JSON_SCAN_PAST ? after_value(p, c) : JSON_SCAN_MORE;
}
