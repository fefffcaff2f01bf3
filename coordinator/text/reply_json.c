/* Calls as JSON objects: Hermes and Qwen (<tool_call>{..}</tool_call>), Granite (<|tool_call|>[{..}, {..}]), Llama 3
 * ({..} alone, or after <|python_tag|>). Marker 0 begins, marker 1, where there is one, ends. */
#include "coordinator/text/reply_grammar.h"

enum { BEFORE, OBJECT, BETWEEN, NEXT, TAIL };

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

void reply_json_byte(struct reply_parser *p, char c)
{
    if (p->state == OBJECT) {
        object_byte(p, c);
        return;
    }
    if (reply_is_space(c)) return;
    switch (p->state) {
    case BEFORE:
        if (c == '[' && !p->list && !p->tools->bare)
            p->list = true;
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
    bool text = p->state == BEFORE || p->state == OBJECT;
    for (size_t i = 0; i < p->raw.len && p->state == TAIL && !text; i++)
        text = !reply_is_space(p->raw.data[i]);
    if (text)
        reply_call_break(p);
    else
        reply_back_to_content(p);
}
