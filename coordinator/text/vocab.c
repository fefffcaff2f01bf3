#include "coordinator/text/vocab.h"

#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"

/* FNV-1a with a final mix: texts are a few bytes long, and linear probing wants good low bits. */
static uint32_t hash(const char *s, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
    return (uint32_t)(h ^ h >> 29 ^ h >> 43);
}

/* Only for a slot that is not empty. */
static uint32_t slot_id(uint64_t slot)
{
    return (uint32_t)slot - 1;
}

enum err_code vocab_init(struct vocab *v, uint32_t n_ids, struct err *why)
{
    *v = (struct vocab){0};
    uint32_t slots = 64;
    while (slots < 2 * n_ids)
        slots *= 2;
    v->n_ids = n_ids;
    v->mask = slots - 1;
    v->off = mem_zalloc_array(n_ids, sizeof *v->off);
    v->len = mem_zalloc_array(n_ids, sizeof *v->len);
    v->flags = mem_zalloc_array(n_ids, sizeof *v->flags);
    v->slots = mem_zalloc_array(slots, sizeof *v->slots);
    if (v->off == NULL || v->len == NULL || v->flags == NULL || v->slots == NULL) {
        vocab_deinit(v);
        return err_nomem(why, "vocabulary");
    }
    return ERR_OK;
}

void vocab_deinit(struct vocab *v)
{
    buf_free(&v->bytes);
    mem_free(v->off);
    mem_free(v->len);
    mem_free(v->flags);
    mem_free(v->slots);
    *v = (struct vocab){0};
}

/* The slot that holds the text, or the empty one where it belongs. Comparing hashes first keeps the
 * probes of a miss inside the table; a fifth of the time of opening a large file went there. */
static uint64_t *slot_of(const struct vocab *v, const char *text, size_t n)
{
    uint32_t h = hash(text, n);
    for (uint32_t i = h & v->mask;; i = (i + 1) & v->mask) {
        uint64_t *slot = &v->slots[i];
        uint32_t id = slot_id(*slot);
        if (*slot == 0) return slot;
        if (*slot >> 32 == h && v->len[id] == n && memcmp(v->bytes.data + v->off[id], text, n) == 0)
            return slot;
    }
}

enum err_code vocab_add(struct vocab *v, uint32_t id, const char *text, size_t n, unsigned flags,
                        struct err *why)
{
    int cut = n > 40 ? 40 : (int)n;
    if (id >= v->n_ids)
        return err_set(why, ERR_CORRUPT, "token '%.*s': id %u, but there are %u ids", cut, text, id,
                       v->n_ids);
    uint64_t *slot = slot_of(v, text, n);
    if (*slot != 0 && slot_id(*slot) == id) {
        v->flags[id] |= (uint8_t)flags;
        return ERR_OK;
    }
    if (*slot != 0)
        return err_set(why, ERR_CORRUPT, "token '%.*s' has two ids, %u and %u", cut, text,
                       slot_id(*slot), id);
    if (v->flags[id] != 0) {
        size_t had_n = 0;
        const char *had = vocab_text(v, (int32_t)id, &had_n);
        return err_set(why, ERR_CORRUPT, "id %u has two tokens, '%.*s' and '%.*s'", id,
                       had_n > 40 ? 40 : (int)had_n, had, cut, text);
    }
    if (v->bytes.len + n > UINT32_MAX)
        return err_set(why, ERR_TOO_LARGE, "the token texts exceed %u bytes", UINT32_MAX);
    v->off[id] = (uint32_t)v->bytes.len;
    v->len[id] = (uint32_t)n;
    buf_append(&v->bytes, text, n);
    if (v->bytes.failed) return err_nomem(why, "vocabulary");
    v->flags[id] = (uint8_t)flags;
    *slot = (uint64_t)hash(text, n) << 32 | (id + 1);
    return ERR_OK;
}

int32_t vocab_find(const struct vocab *v, const char *text, size_t n)
{
    uint64_t slot = v->slots == NULL ? 0 : *slot_of(v, text, n);
    return slot == 0 ? -1 : (int32_t)slot_id(slot);
}

int32_t vocab_find_model(const struct vocab *v, const char *text, size_t n)
{
    int32_t id = vocab_find(v, text, n);
    return id >= 0 && v->flags[id] & VOCAB_MODEL ? id : -1;
}

const char *vocab_text(const struct vocab *v, int32_t id, size_t *n)
{
    if (vocab_flags(v, id) == 0) return NULL;
    *n = v->len[id];
    return v->bytes.data + v->off[id];
}

unsigned vocab_flags(const struct vocab *v, int32_t id)
{
    return id < 0 || (uint32_t)id >= v->n_ids ? 0 : v->flags[id];
}

void vocab_byte_tokens(const struct vocab *v, int32_t ids[256])
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        int n = snprintf(text, sizeof text, "<0x%02X>", byte);
        ids[byte] = vocab_find_model(v, text, (size_t)n);
    }
}
