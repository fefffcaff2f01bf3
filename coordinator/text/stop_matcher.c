/* What is held back is always a prefix of some stop string, the longest that the text ends with. So it
 * is not stored: the pattern in the furthest state spells it. */
#include "coordinator/text/stop_matcher.h"

#include <string.h>

#include "common/base/mem.h"

struct stop_pattern {
    char text[LIMIT_STOP_BYTES];
    uint16_t fail[LIMIT_STOP_BYTES]; /* fail[i]: longest proper border of text[0..i] */
    size_t len, state;               /* state: how many bytes of it the text ends with */
};

enum err_code stop_matcher_init(struct stop_matcher *m, const char *const *stops,
                                const size_t *lens, size_t n, struct err *why)
{
    *m = (struct stop_matcher){.matched = -1};
    if (n > LIMIT_STOP_STRINGS)
        return err_set(why, ERR_INVALID, "%zu stop strings, at most %u", n, LIMIT_STOP_STRINGS);
    for (size_t i = 0; i < n; i++)
        if (lens[i] == 0 || lens[i] > LIMIT_STOP_BYTES)
            return err_set(why, ERR_INVALID, "stop string %zu has %zu bytes, must have 1 to %u", i,
                           lens[i], LIMIT_STOP_BYTES);
    if (n == 0) return ERR_OK;
    m->patterns = mem_zalloc_array(n, sizeof *m->patterns);
    if (m->patterns == NULL) return err_nomem(why, "stop strings");
    m->n = n;
    for (size_t i = 0; i < n; i++) {
        struct stop_pattern *p = &m->patterns[i];
        p->len = lens[i];
        memcpy(p->text, stops[i], lens[i]);
        for (size_t k = 1, border = 0; k < p->len; k++) {
            while (border > 0 && p->text[k] != p->text[border])
                border = p->fail[border - 1];
            if (p->text[k] == p->text[border]) border++;
            p->fail[k] = (uint16_t)border;
        }
    }
    return ERR_OK;
}

void stop_matcher_deinit(struct stop_matcher *m)
{
    mem_free(m->patterns);
    *m = (struct stop_matcher){.matched = -1};
}

static const struct stop_pattern *furthest(const struct stop_matcher *m)
{
    const struct stop_pattern *best = &m->patterns[0];
    for (size_t i = 1; i < m->n; i++)
        if (m->patterns[i].state > best->state) best = &m->patterns[i];
    return best;
}

static void advance(struct stop_pattern *p, char byte)
{
    while (p->state > 0 && p->text[p->state] != byte)
        p->state = p->fail[p->state - 1];
    if (p->text[p->state] == byte) p->state++;
}

/* Append the first n of: the bytes held, then `byte`. */
static void put_oldest(const struct stop_pattern *held, size_t n_held, char byte, size_t n,
                       struct buf *out)
{
    buf_append(out, held->text, n < n_held ? n : n_held);
    if (n > n_held) buf_putc(out, byte);
}

bool stop_matcher_push(struct stop_matcher *m, const char *bytes, size_t n, struct buf *out)
{
    if (m->matched >= 0) return true;
    if (m->n == 0) {
        buf_append(out, bytes, n);
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        const struct stop_pattern *held = furthest(m);
        size_t n_held = held->state, longest = 0, keep = 0;
        for (size_t k = 0; k < m->n; k++) {
            struct stop_pattern *p = &m->patterns[k];
            advance(p, bytes[i]);
            if (p->state > keep) keep = p->state;
            if (p->state == p->len && p->len > longest) {
                longest = p->len;
                m->matched = (int)k;
            }
        }
        /* A match cuts at its own start, even when a longer string had only begun earlier. */
        put_oldest(held, n_held, bytes[i], n_held + 1 - (m->matched >= 0 ? longest : keep), out);
        if (m->matched >= 0) return true;
    }
    return false;
}

void stop_matcher_flush(struct stop_matcher *m, struct buf *out)
{
    if (m->matched >= 0 || m->n == 0) return;
    const struct stop_pattern *held = furthest(m);
    buf_append(out, held->text, held->state);
    for (size_t k = 0; k < m->n; k++)
        m->patterns[k].state = 0;
}
