#include "common/modelfile/experts_spec.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "common/base/mem.h"

enum err_code expert_set_init(struct expert_set *s, uint32_t n_layers, uint32_t n_experts,
                              struct err *why)
{
    assert(n_layers <= LIMIT_LAYERS && n_experts <= LIMIT_EXPERTS);
    *s = (struct expert_set){.n_layers = n_layers, .n_experts = n_experts};
    s->bits = mem_zalloc_array(((size_t)n_layers * n_experts + 63) / 64, sizeof *s->bits);
    return s->bits != NULL ? ERR_OK : err_nomem(why, "a set of experts");
}

void expert_set_deinit(struct expert_set *s)
{
    mem_free(s->bits);
    *s = (struct expert_set){0};
}

static size_t bit_of(const struct expert_set *s, uint32_t layer, uint32_t expert)
{
    assert(layer < s->n_layers && expert < s->n_experts);
    return (size_t)layer * s->n_experts + expert;
}

void expert_set_add(struct expert_set *s, uint32_t layer, uint32_t expert)
{
    size_t i = bit_of(s, layer, expert);
    s->bits[i / 64] |= UINT64_C(1) << i % 64;
}

bool expert_set_has(const struct expert_set *s, uint32_t layer, uint32_t expert)
{
    size_t i = bit_of(s, layer, expert);
    return s->bits[i / 64] >> i % 64 & 1;
}

uint32_t expert_set_count_layer(const struct expert_set *s, uint32_t layer)
{
    uint32_t n = 0;
    for (uint32_t e = 0; e < s->n_experts; e++)
        n += expert_set_has(s, layer, e);
    return n;
}

uint32_t expert_set_count(const struct expert_set *s)
{
    uint32_t n = 0;
    for (uint32_t l = 0; l < s->n_layers; l++)
        n += expert_set_count_layer(s, l);
    return n;
}

/* ---- parsing ----------------------------------------------------------------------------------- */

struct item {
    const char *text; /* for messages: len bytes */
    int len;
    const char *at, *end;
    struct err *why;
};

static enum err_code malformed(const struct item *it)
{
    return err_set(
        it->why, ERR_INVALID,
        "experts: '%.*s' is none of: all, I/N, LAYERS:EXPERTS (with numbers, ranges as 0-7, or *)",
        it->len, it->text);
}

/* Digits only; more than nine cannot be a layer, an expert or a share. */
static enum err_code number(struct item *it, uint32_t *out)
{
    const char *start = it->at;
    uint32_t n = 0;
    while (it->at < it->end && *it->at >= '0' && *it->at <= '9' && it->at - start < 10)
        n = n * 10 + (uint32_t)(*it->at++ - '0');
    if (it->at == start) return malformed(it);
    if (it->at - start > 9)
        return err_set(it->why, ERR_INVALID, "experts: '%.*s': the number is too large", it->len,
                       it->text);
    *out = n;
    return ERR_OK;
}

static bool take(struct item *it, char c)
{
    if (it->at == it->end || *it->at != c) return false;
    it->at++;
    return true;
}

static enum err_code range(struct item *it, const char *what, uint32_t n, uint32_t *first,
                           uint32_t *last)
{
    *first = 0;
    *last = n - 1;
    if (take(it, '*')) return ERR_OK;
    enum err_code rc = number(it, first);
    if (rc != ERR_OK) return rc;
    *last = *first;
    if (take(it, '-')) rc = number(it, last);
    if (rc != ERR_OK) return rc;
    if (*first > *last)
        return err_set(it->why, ERR_INVALID,
                       "experts: '%.*s': the range goes down from %" PRIu32 " to %" PRIu32, it->len,
                       it->text, *first, *last);
    if (*last >= n)
        return err_set(it->why, ERR_INVALID,
                       "experts: '%.*s': %s %" PRIu32 " does not exist, they are 0 to %" PRIu32,
                       it->len, it->text, what, *last, n - 1);
    return ERR_OK;
}

/* Experts of layers [l0, l1] and numbers [e0, e1] with (layer + expert) mod n = i. */
static void add_all(struct expert_set *s, const struct hparams *hp, uint32_t l0, uint32_t l1,
                    uint32_t e0, uint32_t e1, uint32_t i, uint32_t n)
{
    for (uint32_t l = l0; l <= l1; l++)
        for (uint32_t e = e0; hp->is_moe[l] && e <= e1; e++)
            if ((l + e) % n == i) expert_set_add(s, l, e);
}

static enum err_code share(struct item *it, const struct hparams *hp, struct expert_set *s)
{
    uint32_t i, n;
    enum err_code rc = number(it, &i);
    if (rc == ERR_OK && !take(it, '/')) rc = malformed(it);
    if (rc == ERR_OK) rc = number(it, &n);
    if (rc != ERR_OK) return rc;
    if (i >= n)
        return err_set(it->why, ERR_INVALID,
                       "experts: '%.*s': share %" PRIu32 " of %" PRIu32 " does not exist, %s",
                       it->len, it->text, i, n, "they count from 0");
    add_all(s, hp, 0, hp->n_layers - 1, 0, hp->n_experts - 1, i, n);
    return ERR_OK;
}

static enum err_code layers_and_experts(struct item *it, const struct hparams *hp,
                                        struct expert_set *s)
{
    uint32_t l0, l1, e0, e1;
    enum err_code rc = range(it, "layer", hp->n_layers, &l0, &l1);
    if (rc == ERR_OK && !take(it, ':')) rc = malformed(it);
    if (rc == ERR_OK) rc = range(it, "expert", hp->n_experts, &e0, &e1);
    if (rc != ERR_OK) return rc;
    if (l0 == l1 && !hp->is_moe[l0])
        return err_set(it->why, ERR_INVALID, "experts: '%.*s': layer %" PRIu32 " has no experts",
                       it->len, it->text, l0);
    add_all(s, hp, l0, l1, e0, e1, 0, 1);
    return ERR_OK;
}

static enum err_code parse_item(struct item *it, const struct hparams *hp, struct expert_set *s)
{
    size_t len = (size_t)(it->end - it->at);
    if (len == 3 && memcmp(it->at, "all", 3) == 0) {
        add_all(s, hp, 0, hp->n_layers - 1, 0, hp->n_experts - 1, 0, 1);
        return ERR_OK;
    }
    enum err_code rc =
        memchr(it->at, ':', len) != NULL ? layers_and_experts(it, hp, s) : share(it, hp, s);
    if (rc == ERR_OK && it->at != it->end) rc = malformed(it);
    return rc;
}

enum err_code experts_spec_parse(const char *spec, const struct hparams *hp, struct expert_set *out,
                                 struct err *why)
{
    struct expert_set s;
    enum err_code rc = expert_set_init(&s, hp->n_layers, hp->n_experts, why);
    for (const char *p = spec; rc == ERR_OK;) {
        const char *end = p + strcspn(p, ",");
        struct item it = {
            .text = p, .len = (int)(end - p < 60 ? end - p : 60), .at = p, .end = end, .why = why};
        rc = parse_item(&it, hp, &s);
        if (*end == '\0') break;
        p = end + 1;
    }
    if (rc == ERR_OK)
        *out = s;
    else
        expert_set_deinit(&s);
    return rc;
}

/* ---- printing ---------------------------------------------------------------------------------- */

static bool layers_equal(const struct expert_set *s, uint32_t a, uint32_t b)
{
    for (uint32_t e = 0; e < s->n_experts; e++)
        if (expert_set_has(s, a, e) != expert_set_has(s, b, e)) return false;
    return true;
}

static void put_range(struct buf *out, uint32_t first, uint32_t last)
{
    buf_printf(out, "%" PRIu32, first);
    if (last > first) buf_printf(out, "-%" PRIu32, last);
}

void experts_spec_print(const struct expert_set *s, const struct hparams *hp, struct buf *out)
{
    uint32_t n_moe = 0;
    for (uint32_t l = 0; l < s->n_layers; l++)
        n_moe += hp->is_moe[l];
    if (n_moe > 0 && expert_set_count(s) == n_moe * s->n_experts) {
        buf_puts(out, "all");
        return;
    }
    const char *comma = "";
    for (uint32_t l = 0, next; l < s->n_layers; l = next) {
        /* Dense layers in between belong to a run of equal layers: ranges pass over them. */
        uint32_t last = l;
        for (next = l + 1; next < s->n_layers && (!hp->is_moe[next] || layers_equal(s, l, next));
             next++)
            if (hp->is_moe[next]) last = next;
        if (!hp->is_moe[l]) {
            next = l + 1;
            continue;
        }
        for (uint32_t e = 0; e < s->n_experts; e++) {
            if (!expert_set_has(s, l, e)) continue;
            uint32_t end = e;
            while (end + 1 < s->n_experts && expert_set_has(s, l, end + 1))
                end++;
            buf_puts(out, comma);
            comma = ",";
            put_range(out, l, last);
            buf_putc(out, ':');
            put_range(out, e, end);
            e = end;
        }
    }
}
