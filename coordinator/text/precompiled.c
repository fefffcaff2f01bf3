#include "coordinator/text/precompiled.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <utf8proc.h>

#include "common/base/mem.h"
#include "common/base/utf8.h"

static const char where[] = "normalizer Precompiled";

enum { WHOLE_BYTES = 6 }; /* a cluster of so many bytes or more is not looked up as a whole */

struct precompiled {
    uint32_t *units;
    uint32_t n_units;
    char *pool; /* 0-terminated */
    uint32_t pool_n;
};

/* ---- Units -------------------------------------------------------------------------------------- */

static uint32_t unit_label(uint32_t u)
{
    return u & 0x800000FFu;
}

static uint32_t unit_offset(uint32_t u)
{
    return u >> 10 << ((u & 0x200u) >> 6);
}

static bool unit_has_leaf(uint32_t u)
{
    return u >> 8 & 1;
}

/* One byte on: `base` is where the children of the node before are. False: no such child. */
static bool walk(const struct precompiled *p, uint32_t *base, uint8_t byte, bool *leaf)
{
    uint32_t at = *base ^ byte;
    if (at >= p->n_units || unit_label(p->units[at]) != byte) return false;
    *base = at ^ unit_offset(p->units[at]);
    *leaf = unit_has_leaf(p->units[at]);
    return true;
}

/* ---- Loading ------------------------------------------------------------------------------------ */

/* The leaf below `base`: its value must be the start of a replacement. */
static enum err_code check_leaf(const struct precompiled *p, uint32_t base, struct err *why)
{
    if (base >= p->n_units)
        return err_set(why, ERR_CORRUPT, "%s: a leaf at unit %u of %u", where, base, p->n_units);
    uint32_t value = p->units[base] & 0x7FFFFFFFu;
    if (value >= p->pool_n)
        return err_set(why, ERR_CORRUPT, "%s: a replacement at byte %u of %u", where, value,
                       p->pool_n);
    if (((uint8_t)p->pool[value] & 0xC0) == 0x80)
        return err_set(why, ERR_CORRUPT, "%s: the replacement at byte %u starts inside a character",
                       where, value);
    return ERR_OK;
}

/* Visit every node that a text can reach, once: what is wrong is said now, not in the middle of a text. */
static enum err_code check_trie(const struct precompiled *p, struct err *why)
{
    uint32_t *stack = mem_zalloc_array((size_t)p->n_units + 1, sizeof *stack);
    uint8_t *seen = mem_zalloc((size_t)p->n_units + 1);
    enum err_code rc = stack == NULL || seen == NULL ? err_nomem(why, where) : ERR_OK;
    size_t n = 0;
    if (rc == ERR_OK) stack[n++] = unit_offset(p->units[0]);
    while (rc == ERR_OK && n > 0) {
        uint32_t parent = stack[--n];
        for (unsigned byte = 1; byte < 256 && rc == ERR_OK; byte++) {
            uint32_t base = parent;
            bool leaf;
            if (!walk(p, &base, (uint8_t)byte, &leaf) || seen[parent ^ byte]) continue;
            seen[parent ^ byte] = 1;
            if (leaf) rc = check_leaf(p, base, why);
            stack[n++] = base; /* each unit gets here at most once */
        }
    }
    mem_free(stack);
    mem_free(seen);
    return rc;
}

static uint32_t read_u32(const uint8_t *b)
{
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static enum err_code load(struct precompiled *p, const uint8_t *bytes, size_t n, struct err *why)
{
    if (n < 4 || n > UINT32_MAX)
        return err_set(why, ERR_CORRUPT, "%s: a table of %zu bytes", where, n);
    uint32_t trie_n = read_u32(bytes);
    if (trie_n < 4 || trie_n % 4 != 0 || trie_n > n - 4)
        return err_set(why, ERR_CORRUPT, "%s: a trie of %u bytes in a table of %zu", where, trie_n,
                       n);
    p->n_units = trie_n / 4;
    p->pool_n = (uint32_t)(n - 4 - trie_n);
    p->units = mem_zalloc_array(p->n_units, sizeof *p->units);
    p->pool = mem_strndup((const char *)bytes + 4 + trie_n, p->pool_n);
    if (p->units == NULL || p->pool == NULL) return err_nomem(why, where);
    for (uint32_t i = 0; i < p->n_units; i++)
        p->units[i] = read_u32(bytes + 4 + 4 * (size_t)i);
    if (!utf8_valid(p->pool, p->pool_n))
        return err_set(why, ERR_CORRUPT, "%s: the replacements are not UTF-8", where);
    return check_trie(p, why);
}

enum err_code precompiled_open(const void *bytes, size_t n, struct precompiled **out,
                               struct err *why)
{
    struct precompiled *p = mem_zalloc(sizeof *p);
    if (p == NULL) return err_nomem(why, where);
    enum err_code rc = load(p, bytes, n, why);
    if (rc == ERR_OK)
        *out = p;
    else
        precompiled_close(p);
    return rc;
}

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

enum err_code precompiled_open_base64(const char *text, size_t n, struct precompiled **out,
                                      struct err *why)
{
    struct buf bytes = {0};
    size_t padding = 0;
    while (padding < 2 && padding < n && text[n - 1 - padding] == '=')
        padding++;
    uint32_t bits = 0;
    for (size_t i = 0; i < n - padding; i++) {
        int value = base64_value(text[i]);
        if (value < 0) {
            buf_free(&bytes);
            return err_set(why, ERR_CORRUPT, "%s: byte %zu of %zu is not base64", where, i, n);
        }
        bits = bits << 6 | (uint32_t)value;
        if (i % 4 != 0) buf_putc(&bytes, (char)(bits >> (6 - 2 * (i % 4))));
    }
    if (n % 4 != 0) {
        buf_free(&bytes);
        return err_set(why, ERR_CORRUPT, "%s: %zu characters of base64 are no multiple of 4", where,
                       n);
    }
    enum err_code rc =
        bytes.failed ? err_nomem(why, where) : precompiled_open(bytes.data, bytes.len, out, why);
    buf_free(&bytes);
    return rc;
}

void precompiled_close(struct precompiled *p)
{
    if (p == NULL) return;
    mem_free(p->units);
    mem_free(p->pool);
    mem_free(p);
}

/* ---- Running ------------------------------------------------------------------------------------ */

/* The replacement of the shortest prefix of `part` that has one, or NULL. */
static const char *find(const struct precompiled *p, const char *part, size_t n)
{
    uint32_t base = unit_offset(p->units[0]);
    bool leaf;
    for (size_t i = 0; i < n && part[i] != '\0'; i++) {
        if (!walk(p, &base, (uint8_t)part[i], &leaf)) return NULL;
        if (leaf) return p->pool + (p->units[base] & 0x7FFFFFFFu);
    }
    return NULL;
}

static void put_cluster(const struct precompiled *p, const char *text, size_t n, struct buf *out)
{
    const char *whole = n < WHOLE_BYTES ? find(p, text, n) : NULL;
    if (whole != NULL) {
        buf_puts(out, whole);
        return;
    }
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t used = utf8_decode(text + i, n - i, &cp);
        const char *one = find(p, text + i, used);
        if (one != NULL)
            buf_puts(out, one);
        else
            buf_append(out, text + i, used);
        i += used;
    }
}

void precompiled_run(const struct precompiled *p, const char *text, size_t n, struct buf *out)
{
    utf8proc_int32_t state = 0;
    uint32_t before = 0, cp;
    size_t start = 0;
    for (size_t i = 0, used; i < n; i += used) {
        used = utf8_decode(text + i, n - i, &cp);
        if (i > 0 && utf8proc_grapheme_break_stateful((utf8proc_int32_t)before,
                                                      (utf8proc_int32_t)cp, &state)) {
            put_cluster(p, text + start, i - start, out);
            start = i;
        }
        before = cp;
    }
    if (n > start) put_cluster(p, text + start, n - start, out);
}
