/* Calls as sections, name and arguments apart:
 *
 *   DeepSeek V3, R1   <calls><call>function<sep>NAME\n```json\n{..}\n```</call>\n<call>..</call></calls>
 *   DeepSeek V3.1     <calls><call>NAME<sep>{..}</call></calls>
 *   Kimi K2           <calls><call>functions.NAME:0<sep>{..}</call></calls>
 *   Mistral           [TOOL_CALLS]NAME[CALL_ID]ID[ARGS]{..}, or its older [TOOL_CALLS][{"name":..}, ..]
 *
 * A template may forget </calls>, so a reply may end after any call. */
#include <string.h>

#include "coordinator/text/reply_grammar.h"

/* DeepSeek's and Kimi's markers, in this order. */
enum { CALLS, CALL, SEP, CALL_CLOSE, CALLS_CLOSE };
enum { BETWEEN, HEAD, BEHIND_SEP, NAME, FENCE, ARGUMENTS, TAIL };

#define BIT(m) (1u << (m))

static void between(struct reply_parser *p)
{
    p->state = BETWEEN;
    reply_enable(p, BIT(CALLS) | BIT(CALL) | BIT(CALLS_CLOSE));
}

static void begin_head(struct reply_parser *p)
{
    buf_clear(&p->name);
    p->state = HEAD;
    reply_enable(p, BIT(SEP) | BIT(CALL_CLOSE) | BIT(CALLS_CLOSE));
}

void reply_section_begin(struct reply_parser *p, int marker)
{
    if (marker == CALL)
        begin_head(p);
    else
        between(p);
}

static void trim(struct buf *b)
{
    while (b->len > 0 && reply_is_space(b->data[b->len - 1]))
        b->len--;
    size_t front = 0;
    while (front < b->len && reply_is_space(b->data[front]))
        front++;
    if (front > 0) buf_consume(b, front);
}

/* "functions.get_weather:0" is the call's id, and its name is inside. */
static void split_id(struct reply_parser *p)
{
    static const char prefix[] = "functions.";
    const size_t n_prefix = sizeof prefix - 1;
    struct buf *name = &p->name;
    if (name->len <= n_prefix || memcmp(name->data, prefix, n_prefix) != 0) return;
    size_t digits = name->len;
    while (digits > n_prefix && name->data[digits - 1] >= '0' && name->data[digits - 1] <= '9')
        digits--;
    if (digits < name->len && name->data[digits - 1] == ':') {
        buf_append(&p->id, name->data, name->len);
        name->len = digits - 1;
    }
    buf_consume(name, n_prefix);
}

static void begin_arguments(struct reply_parser *p)
{
    trim(&p->name);
    split_id(p);
    reply_enable(p, 0); /* a string in them may spell a marker */
    reply_arguments_reset(p);
    p->state = ARGUMENTS;
}

static void arguments_byte(struct reply_parser *p, char c)
{
    /* The call begins to leave with the first byte that can belong to it. */
    if (!p->begun && c == '{' && !reply_call_begin(p)) return;
    switch (reply_arguments_byte(p, c)) {
    case JSON_SCAN_MORE:
        return;
    case JSON_SCAN_DONE:
        reply_call_end(p);
        if (p->phase != REPLY_IN_CALL) return;
        p->state = TAIL;
        reply_enable(p, BIT(CALL) | BIT(CALL_CLOSE) | BIT(CALLS_CLOSE));
        return;
    default:
        reply_call_break(p);
        return;
    }
}

void reply_section_byte(struct reply_parser *p, char c)
{
    switch (p->state) {
    case HEAD:
        buf_putc(&p->name, c);
        if (p->name.len > LIMIT_TOOL_NAME_BYTES + 16) reply_call_break(p);
        return;
    case BEHIND_SEP:
        if (reply_is_space(c)) return;
        if (c == '{' || c == '"') {
            begin_arguments(p);
            arguments_byte(p, c);
            return;
        }
        buf_clear(&p->name); /* it was the call's type, and this is its name */
        buf_putc(&p->name, c);
        p->state = NAME;
        return;
    case NAME:
        if (c == '\n')
            p->state = FENCE;
        else
            buf_putc(&p->name, c);
        if (p->name.len > LIMIT_TOOL_NAME_BYTES) reply_call_break(p);
        return;
    case FENCE:
        if (c == '{' || c == '"') {
            begin_arguments(p);
            arguments_byte(p, c);
        } else if (!reply_is_space(c) && strchr("`json", c) == NULL) {
            reply_call_break(p);
        }
        return;
    case ARGUMENTS:
        arguments_byte(p, c);
        return;
    case TAIL: /* the fence's end; what else stands here is of no use */
        return;
    default:
        if (!reply_is_space(c)) reply_call_break(p);
        return;
    }
}

void reply_section_marker(struct reply_parser *p, uint32_t marker)
{
    switch (p->state) {
    case HEAD:
        if (marker != SEP) break;
        p->state = BEHIND_SEP;
        reply_enable(p, BIT(CALL_CLOSE) | BIT(CALLS_CLOSE));
        return;
    case BETWEEN:
    case TAIL:
        if (marker == CALL) {
            begin_head(p);
            return;
        }
        if (marker == CALLS_CLOSE) {
            reply_back_to_content(p);
            return;
        }
        if (marker == SEP) break;
        if (marker == CALL_CLOSE) buf_clear(&p->raw);
        between(p);
        return;
    default:
        break;
    }
    reply_call_break(p);
}

void reply_section_end(struct reply_parser *p)
{
    bool after_call = p->state == TAIL || (p->state == BETWEEN && p->n_ended > 0);
    for (size_t i = 0; i < p->raw.len && after_call && p->state == TAIL; i++)
        after_call = reply_is_space(p->raw.data[i]) || p->raw.data[i] == '`';
    if (after_call)
        reply_back_to_content(p);
    else
        reply_call_break(p);
}

/* ---- Mistral ---- */

enum { TOOL_CALLS, CALL_ID, ARGS };
enum { UNDECIDED, AS_LIST, AS_SECTIONS };
enum { M_NAME, M_ID, M_ARGUMENTS, M_TAIL };

void reply_mistral_begin(struct reply_parser *p, int marker)
{
    (void)marker;
    p->wanted = UNDECIDED;
    reply_enable(p, 0);
}

static void mistral_section_byte(struct reply_parser *p, char c)
{
    switch (p->state) {
    case M_NAME:
        buf_putc(&p->name, c);
        if (p->name.len > LIMIT_TOOL_NAME_BYTES + 16) reply_call_break(p);
        return;
    case M_ID:
        buf_putc(&p->id, c);
        if (p->id.len > LIMIT_TOOL_ID_BYTES) reply_call_break(p);
        return;
    case M_TAIL:
        if (!reply_is_space(c)) reply_call_break(p);
        return;
    default:
        arguments_byte(p, c);
        if (p->phase != REPLY_IN_CALL || p->state != TAIL) return;
        p->state = M_TAIL;
        reply_enable(p, BIT(TOOL_CALLS));
        return;
    }
}

void reply_mistral_byte(struct reply_parser *p, char c)
{
    if (p->wanted == UNDECIDED) {
        if (reply_is_space(c)) return;
        p->wanted = c == '[' || c == '{' ? AS_LIST : AS_SECTIONS;
        if (p->wanted == AS_LIST) {
            reply_json_begin(p, TOOL_CALLS);
        } else {
            p->state = M_NAME;
            reply_enable(p, BIT(CALL_ID) | BIT(ARGS));
        }
    }
    if (p->wanted == AS_LIST)
        reply_json_byte(p, c);
    else
        mistral_section_byte(p, c);
}

void reply_mistral_marker(struct reply_parser *p, uint32_t marker)
{
    if (p->wanted == AS_LIST) {
        reply_json_marker(p, marker);
        if (p->phase == REPLY_IN_CALL) reply_mistral_begin(p, TOOL_CALLS);
        return;
    }
    if (p->wanted != AS_SECTIONS) {
        reply_call_break(p);
        return;
    }
    if (p->state == M_TAIL && marker == TOOL_CALLS) {
        reply_mistral_begin(p, TOOL_CALLS);
    } else if (p->state == M_NAME && marker == CALL_ID) {
        p->state = M_ID;
    } else if ((p->state == M_NAME || p->state == M_ID) && marker == ARGS) {
        trim(&p->id);
        begin_arguments(p);
        p->state = M_ARGUMENTS;
    } else {
        reply_call_break(p);
    }
}

void reply_mistral_end(struct reply_parser *p)
{
    if (p->wanted == AS_LIST)
        reply_json_end(p);
    else if (p->wanted == AS_SECTIONS && p->state == M_TAIL)
        reply_back_to_content(p);
    else
        reply_call_break(p);
}
