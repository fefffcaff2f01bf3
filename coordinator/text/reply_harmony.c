/* gpt-oss's harmony: a reply is a row of messages, each with a channel and perhaps a recipient. The template wrote the
 * first "<|start|>assistant".
 *
 *   <|channel|>analysis<|message|>..<|end|><|start|>assistant<|channel|>final<|message|>..<|return|>
 *   <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{..}<|call|>
 *   to=functions.NAME<|channel|>commentary json<|message|>{..}<|call|>
 *
 * analysis is reasoning, what goes to a function is a call, everything else is content. */
#include <string.h>

#include "coordinator/text/reply_grammar.h"

enum { START, CHANNEL, CONSTRAIN, MESSAGE, END, RETURN, CALL };
enum { HEAD, BODY, ARGUMENTS, BEHIND_ARGUMENTS };
enum { TO_CONTENT, TO_REASONING };

/* The head is in `key`, and from <|channel|> on in `value`. */
static void begin_head(struct reply_parser *p)
{
    buf_clear(&p->key);
    buf_clear(&p->value);
    p->state = HEAD;
    p->harmony.in_channel = false;
    p->phase = REPLY_TEXT;
    reply_enable(p, ~0u);
}

/* The word behind `prefix` in a head; its length, 0 if there is none. */
static size_t word_behind(const struct buf *head, const char *prefix, const char **word)
{
    const size_t n_prefix = strlen(prefix);
    for (size_t i = 0; i + n_prefix <= head->len; i++) {
        if ((i > 0 && !reply_is_space(head->data[i - 1])) ||
            memcmp(head->data + i, prefix, n_prefix) != 0)
            continue;
        size_t end = i + n_prefix;
        while (end < head->len && !reply_is_space(head->data[end]))
            end++;
        *word = head->data + i + n_prefix;
        return end - i - n_prefix;
    }
    return 0;
}

/* A message to a function: its name is put into p->name. */
static bool find_function(struct reply_parser *p)
{
    static const char prefix[] = "functions.";
    const char *to = NULL;
    size_t n = word_behind(&p->key, "to=", &to);
    if (n == 0) n = word_behind(&p->value, "to=", &to);
    if (n == 0 || p->tools == NULL) return false;
    bool prefixed = n > sizeof prefix - 1 && memcmp(to, prefix, sizeof prefix - 1) == 0;
    if (!prefixed && reply_tool(p, to, n) == NULL) return false;
    size_t skip = prefixed ? sizeof prefix - 1 : 0;
    buf_clear(&p->name);
    buf_append(&p->name, to + skip, n - skip);
    return true;
}

static bool channel_is(const struct buf *channel, const char *name)
{
    size_t front = 0, n = strlen(name);
    while (front < channel->len && reply_is_space(channel->data[front]))
        front++;
    return channel->len >= front + n && memcmp(channel->data + front, name, n) == 0 &&
           (channel->len == front + n || reply_is_space(channel->data[front + n]));
}

static void body_byte(struct reply_parser *p, char c)
{
    bool reasoning = p->harmony.channel == TO_REASONING;
    bool *any = reasoning ? &p->harmony.any_reasoning : &p->harmony.any_content;
    enum reply_event_kind kind = reasoning ? REPLY_REASONING : REPLY_CONTENT;
    if (p->harmony.unsaid && *any) reply_put(p, kind, "\n", 1); /* between two messages */
    p->harmony.unsaid = false;
    *any = true;
    reply_put(p, kind, &c, 1);
}

static void begin_body(struct reply_parser *p)
{
    if (find_function(p)) {
        buf_clear(&p->raw);
        reply_arguments_reset(p);
        p->state = ARGUMENTS;
        p->phase = REPLY_IN_CALL;
        return;
    }
    bool analysis = p->reasoning != NULL && channel_is(&p->value, "analysis");
    p->harmony.channel = analysis ? TO_REASONING : TO_CONTENT;
    p->harmony.unsaid = true;
    p->state = BODY;
}

/* What began as a call is content, and so is what follows of its message. */
static void break_call(struct reply_parser *p)
{
    if (p->harmony.any_content && p->raw.len > 0) reply_put(p, REPLY_CONTENT, "\n", 1);
    p->harmony.any_content |= p->raw.len > 0;
    reply_call_break(p);
    p->harmony.channel = TO_CONTENT;
    p->harmony.unsaid = false;
    p->state = BODY;
}

static bool is_blank(const struct buf *b)
{
    for (size_t i = 0; i < b->len; i++)
        if (!reply_is_space(b->data[i])) return false;
    return true;
}

static void end_body(struct reply_parser *p)
{
    if (p->state == ARGUMENTS) {
        if (is_blank(&p->raw)) {
            reply_call_arguments(p, "{}", 2);
            reply_call_end(p);
        } else {
            break_call(p);
        }
    }
    begin_head(p);
}

static void arguments_byte(struct reply_parser *p, char c)
{
    buf_putc(&p->raw, c);
    enum json_scan r = p->raw.len > LIMIT_TOOL_CALL_BYTES ? JSON_SCAN_BROKEN : JSON_SCAN_MORE;
    if (r == JSON_SCAN_MORE && !p->begun && c == '{' && !reply_call_begin(p)) {
        p->harmony.channel = TO_CONTENT;
        p->harmony.unsaid = false;
        p->harmony.any_content = true;
        p->state = BODY;
        return;
    }
    if (!reply_is_space(c)) reply_enable(p, 0); /* a string in them may spell a marker */
    if (r == JSON_SCAN_MORE) r = reply_arguments_byte(p, c);
    if (r == JSON_SCAN_MORE) return;
    if (r != JSON_SCAN_DONE) {
        break_call(p);
        return;
    }
    reply_call_end(p);
    if (p->phase != REPLY_IN_CALL) break_call(p);
    if (p->state == ARGUMENTS) p->state = BEHIND_ARGUMENTS;
    reply_enable(p, ~0u);
}

/* A head that is none: a model that does not write in channels. */
static void head_is_content(struct reply_parser *p)
{
    struct buf head = p->harmony.in_channel ? p->value : p->key;
    p->harmony.channel = TO_CONTENT;
    p->harmony.unsaid = true;
    p->state = BODY;
    for (size_t i = 0; i < head.len; i++)
        body_byte(p, head.data[i]);
}

void reply_harmony_byte(struct reply_parser *p, char c)
{
    struct buf *head = p->harmony.in_channel ? &p->value : &p->key;
    switch (p->state) {
    case HEAD:
        buf_putc(head, c);
        p->failed |= head->failed;
        if (head->len > LIMIT_REPLY_HEAD_BYTES) head_is_content(p);
        break;
    case BODY:
        body_byte(p, c);
        break;
    case ARGUMENTS:
        arguments_byte(p, c);
        break;
    default: /* behind a call */
        if (reply_is_space(c)) break;
        p->phase = REPLY_TEXT;
        p->harmony.channel = TO_CONTENT;
        p->harmony.unsaid = true;
        p->state = BODY;
        body_byte(p, c);
        break;
    }
}

void reply_harmony_marker(struct reply_parser *p, uint32_t marker)
{
    if (p->state != HEAD) {
        if (marker == CONSTRAIN || marker == MESSAGE) return;
        end_body(p);
    }
    switch (marker) {
    case CHANNEL:
        p->harmony.in_channel = true;
        break;
    case CONSTRAIN:
        buf_putc(p->harmony.in_channel ? &p->value : &p->key, ' ');
        break;
    case MESSAGE:
        begin_body(p);
        break;
    default:
        begin_head(p);
        break;
    }
}

void reply_harmony_end(struct reply_parser *p)
{
    if (p->state == HEAD && !p->harmony.in_channel && !is_blank(&p->key) &&
        !p->harmony.any_content && p->n_calls == 0 && !p->harmony.any_reasoning)
        head_is_content(p);
    else if (p->state != HEAD)
        end_body(p);
}

const struct reply_grammar reply_harmony = {
    .name = "harmony",
    .sign = "<|channel|>",
    .markers = {"<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>",
                "<|call|>"},
    .byte = reply_harmony_byte,
    .marker = reply_harmony_marker,
    .end = reply_harmony_end,
};
