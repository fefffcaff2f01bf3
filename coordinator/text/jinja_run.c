#include "coordinator/text/jinja_run.h"

#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"

bool jinja_fail(struct jinja_run *r, const char *fmt, ...)
{
    if (r->rc != ERR_OK) return false;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    r->rc = err_set(r->why, ERR_INVALID, "chat template, line %u: %s", r->line, text);
    return false;
}

bool jinja_fail_nomem(struct jinja_run *r)
{
    if (r->rc == ERR_OK) r->rc = err_nomem(r->why, "chat template");
    return false;
}

bool jinja_steps(struct jinja_run *r, size_t n)
{
    if (r->rc != ERR_OK) return false;
    r->steps += n;
    if (r->steps <= LIMIT_TEMPLATE_STEPS) return true;
    return jinja_fail(r, "more than %u steps", LIMIT_TEMPLATE_STEPS);
}

bool jinja_touch(struct jinja_run *r, size_t n_bytes)
{
    return jinja_steps(r, 1 + n_bytes / 1024);
}

bool jinja_enter(struct jinja_run *r)
{
    if (++r->depth <= LIMIT_TEMPLATE_EVAL_DEPTH) return jinja_steps(r, 1);
    return jinja_fail(r, "nested deeper than %u levels", LIMIT_TEMPLATE_EVAL_DEPTH);
}

void jinja_leave(struct jinja_run *r)
{
    r->depth--;
}

void *jinja_alloc(struct jinja_run *r, size_t n, size_t bytes_each)
{
    if (r->rc != ERR_OK) return NULL;
    void *p = arena_zalloc_array(&r->arena, n, bytes_each);
    if (p != NULL) return p;
    size_t bytes;
    if (!size_mul(n, bytes_each, &bytes) || bytes > r->arena.max_bytes ||
        r->arena.used_bytes + bytes + 64 > r->arena.max_bytes)
        jinja_fail(r, "values take more than %u bytes", LIMIT_TEMPLATE_MEMORY_BYTES);
    else
        jinja_fail_nomem(r);
    return NULL;
}

size_t jinja_mark(const struct jinja_run *r)
{
    return r->out->len;
}

/* Room for n bytes was asked for: is it within the bound and paid for? */
static bool admit(struct jinja_run *r, size_t n)
{
    if (!jinja_steps(r, n / 1024)) return false;
    if (n > LIMIT_TEMPLATE_SCRATCH_BYTES || r->out->len > LIMIT_TEMPLATE_SCRATCH_BYTES - n)
        return jinja_fail(r, "a text longer than %u bytes", LIMIT_TEMPLATE_SCRATCH_BYTES);
    return true;
}

static bool appended(struct jinja_run *r)
{
    if (!r->out->failed && !r->taint->failed) return true;
    return jinja_fail_nomem(r);
}

bool jinja_emit(struct jinja_run *r, const char *bytes, size_t n, bool tainted)
{
    if (!admit(r, n)) return false;
    buf_append(r->out, bytes, n);
    char flags[256];
    memset(flags, tainted, n < sizeof flags ? n : sizeof flags);
    for (size_t left = n; left > 0;) {
        size_t k = left < sizeof flags ? left : sizeof flags;
        buf_append(r->taint, flags, k);
        left -= k;
    }
    return appended(r);
}

bool jinja_emit_text(struct jinja_run *r, const char *text)
{
    return jinja_emit(r, text, strlen(text), false);
}

bool jinja_emit_sub(struct jinja_run *r, const struct jinja_str *s, size_t from, size_t n)
{
    if (s->taint == NULL) return jinja_emit(r, s->bytes + from, n, s->tainted);
    if (!admit(r, n)) return false;
    buf_append(r->out, s->bytes + from, n);
    buf_append(r->taint, s->taint + from, n);
    return appended(r);
}

bool jinja_emit_str(struct jinja_run *r, const struct jinja_str *s)
{
    return jinja_emit_sub(r, s, 0, s->len);
}

void jinja_spread_taint(struct jinja_run *r, size_t mark)
{
    if (r->rc != ERR_OK || r->taint->len == mark) return;
    char *t = r->taint->data + mark;
    size_t n = r->taint->len - mark;
    if (memchr(t, 1, n) != NULL) memset(t, 1, n);
}

bool jinja_take(struct jinja_run *r, size_t mark, struct jinja_value *out)
{
    if (r->rc != ERR_OK) return false;
    size_t n = r->out->len - mark;
    struct jinja_str *s = jinja_alloc(r, 1, sizeof *s);
    char *bytes = s == NULL ? NULL : jinja_alloc(r, n, 1);
    if (bytes == NULL) return false;
    *s = (struct jinja_str){.bytes = bytes, .len = n};
    if (n > 0) {
        const char *t = r->taint->data + mark;
        memcpy(bytes, r->out->data + mark, n);
        s->tainted = t[0] != 0;
        if (memchr(t, !s->tainted, n) != NULL) {
            uint8_t *taint = jinja_alloc(r, n, 1);
            if (taint == NULL) return false;
            memcpy(taint, t, n);
            s->taint = taint;
        }
        r->out->len = mark;
        r->taint->len = mark;
        r->out->data[mark] = r->taint->data[mark] = '\0';
    }
    *out = (struct jinja_value){.kind = JV_STRING, .str = s};
    return true;
}
