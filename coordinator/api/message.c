#include "coordinator/api/message.h"

#include <string.h>

#include "common/base/mem.h"

void message_init(struct message *m, uint64_t id_seed)
{
    *m = (struct message){.id_seed = id_seed};
}

void message_drop(struct message *m)
{
    for (size_t i = 0; i < m->n_parts; i++) {
        buf_free(&m->parts[i].text);
        buf_free(&m->parts[i].id);
    }
    m->n_parts = 0;
}

void message_deinit(struct message *m)
{
    message_drop(m);
    mem_free(m->parts);
    *m = (struct message){0};
}

/* splitmix64's last step: neighboring seeds give ids that look nothing alike. */
static uint64_t mixed(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void put_id(uint64_t seed, uint32_t call, struct buf *b)
{
    static const char letters[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    uint64_t x = mixed(seed ^ (uint64_t)call << 48);
    for (size_t i = 0; i + 1 < MESSAGE_ID_BYTES; i++, x /= sizeof letters - 1)
        buf_putc(b, letters[x % (sizeof letters - 1)]);
}

static struct message_part *add_part(struct message *m)
{
    if (m->n_parts == m->cap_parts) {
        size_t cap = m->cap_parts == 0 ? 8 : 2 * m->cap_parts, bytes;
        struct message_part *more =
            size_mul(cap, sizeof *more, &bytes) ? mem_realloc(m->parts, bytes) : NULL;
        if (more == NULL) {
            m->failed = true;
            return NULL;
        }
        m->parts = more;
        m->cap_parts = cap;
    }
    struct message_part *part = &m->parts[m->n_parts++];
    *part = (struct message_part){0};
    return part;
}

void message_event(void *message, const struct reply_event *ev)
{
    struct message *m = message;
    bool call = ev->kind != REPLY_CONTENT && ev->kind != REPLY_REASONING;
    bool joins =
        ev->kind != REPLY_CALL_BEGIN && ev->kind != REPLY_CALL_END && ev->kind != REPLY_CALL_BROKEN;
    m->n_ended += ev->kind == REPLY_CALL_END;
    struct message_part *part = m->n_parts > 0 ? &m->parts[m->n_parts - 1] : NULL;
    if (part == NULL || !joins || part->kind != ev->kind || (call && part->call != ev->call)) {
        part = add_part(m);
        if (part == NULL) return;
        part->kind = ev->kind;
        part->call = ev->call;
    }
    buf_append(&part->text, ev->text, ev->n);
    if (ev->kind == REPLY_CALL_BEGIN) {
        if (ev->n_id > 0)
            buf_append(&part->id, ev->id, ev->n_id);
        else
            put_id(m->id_seed, ev->call, &part->id);
    }
    m->failed |= part->text.failed || part->id.failed;
}

static void put_string(const char *name, const struct buf *text, struct buf *b)
{
    buf_printf(b, "\"%s\":", name);
    buf_put_json_string(b, text->len > 0 ? text->data : "", text->len);
}

bool message_has_delta(const struct message *m)
{
    for (size_t i = 0; i < m->n_parts; i++)
        if (m->parts[i].kind != REPLY_CALL_END && m->parts[i].kind != REPLY_CALL_BROKEN)
            return true;
    return false;
}

bool message_put_delta(const struct message *m, size_t *at, struct buf *b)
{
    while (*at < m->n_parts) {
        const struct message_part *part = &m->parts[(*at)++];
        switch (part->kind) {
        case REPLY_CONTENT:
        case REPLY_REASONING:
            buf_putc(b, '{');
            put_string(part->kind == REPLY_CONTENT ? "content" : "reasoning_content", &part->text,
                       b);
            buf_putc(b, '}');
            return true;
        case REPLY_CALL_BEGIN:
            buf_printf(b, "{\"tool_calls\":[{\"index\":%u,", part->call);
            put_string("id", &part->id, b);
            buf_puts(b, ",\"type\":\"function\",\"function\":{");
            put_string("name", &part->text, b);
            buf_puts(b, ",\"arguments\":\"\"}}]}");
            return true;
        case REPLY_CALL_ARGUMENTS:
            buf_printf(b, "{\"tool_calls\":[{\"index\":%u,\"function\":{", part->call);
            put_string("arguments", &part->text, b);
            buf_puts(b, "}}]}");
            return true;
        case REPLY_CALL_END:
        case REPLY_CALL_BROKEN:
            break;
        }
    }
    return false;
}

/* ---- the whole ---- */

static void gather(const struct message *m, enum reply_event_kind kind, uint32_t call,
                   struct buf *text)
{
    for (size_t i = 0; i < m->n_parts; i++)
        if (m->parts[i].kind == kind && (kind != REPLY_CALL_ARGUMENTS || m->parts[i].call == call))
            buf_append(text, m->parts[i].text.len > 0 ? m->parts[i].text.data : "",
                       m->parts[i].text.len);
}

static bool is_complete(const struct message *m, uint32_t call)
{
    for (size_t i = 0; i < m->n_parts; i++)
        if (m->parts[i].kind == REPLY_CALL_END && m->parts[i].call == call) return true;
    return false;
}

static void put_calls(const struct message *m, struct buf *b)
{
    bool any = false;
    for (size_t i = 0; i < m->n_parts; i++) {
        const struct message_part *part = &m->parts[i];
        if (part->kind != REPLY_CALL_BEGIN || !is_complete(m, part->call)) continue;
        struct buf arguments = {0};
        gather(m, REPLY_CALL_ARGUMENTS, part->call, &arguments);
        buf_puts(b, any ? ",{" : ",\"tool_calls\":[{");
        any = true;
        put_string("id", &part->id, b);
        buf_puts(b, ",\"type\":\"function\",\"function\":{");
        put_string("name", &part->text, b);
        buf_putc(b, ',');
        put_string("arguments", &arguments, b);
        buf_puts(b, "}}");
        b->failed |= arguments.failed;
        buf_free(&arguments);
    }
    if (any) buf_putc(b, ']');
}

void message_put(const struct message *m, struct buf *b)
{
    struct buf content = {0}, reasoning = {0};
    gather(m, REPLY_CONTENT, 0, &content);
    gather(m, REPLY_REASONING, 0, &reasoning);
    b->failed |= content.failed || reasoning.failed;
    buf_puts(b, "{\"role\":\"assistant\",");
    /* OpenAI: null where there is nothing but calls. */
    if (content.len == 0 && m->n_ended > 0)
        buf_puts(b, "\"content\":null");
    else
        put_string("content", &content, b);
    if (reasoning.len > 0) {
        buf_putc(b, ',');
        put_string("reasoning_content", &reasoning, b);
    }
    put_calls(m, b);
    buf_puts(b, ",\"refusal\":null}");
    buf_free(&content);
    buf_free(&reasoning);
}
