#include "coordinator/engine/sequence.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "coordinator/engine/kv_cache.h"

struct sequence *sequence_open(const struct engine_event *ev, uint64_t age)
{
    struct sequence *s = mem_zalloc(sizeof *s);
    if (s == NULL) return NULL;
    list_init(&s->link);
    s->id = ev->submit.sequence;
    s->age = age;
    s->ignore_eos = ev->submit.ignore_eos;
    s->prompt_logits = ev->submit.prompt_logits;
    s->n_prompt = s->n_tokens = ev->submit.n_prompt;
    s->max_tokens = ev->submit.max_tokens;
    s->submit_us = ev->now_us;
    s->deadline_us = ev->submit.deadline_us;
    size_t most = (size_t)s->n_prompt + s->max_tokens;
    s->tokens = mem_alloc(most * sizeof *s->tokens);
    s->blocks = mem_alloc(kv_cache_blocks((uint32_t)most) * sizeof *s->blocks);
    if (s->tokens == NULL || s->blocks == NULL) {
        sequence_close(s);
        return NULL;
    }
    memcpy(s->tokens, ev->submit.prompt, s->n_prompt * sizeof *s->tokens);
    return s;
}

void sequence_close(struct sequence *s)
{
    if (s == NULL) return;
    mem_free(s->tokens);
    mem_free(s->blocks);
    mem_free(s);
}

/* Names are often consecutive or pointers: spread them (the finalizer of SplitMix64). */
static uint32_t hash(uint64_t id)
{
    id ^= id >> 30;
    id *= 0xbf58476d1ce4e5b9u;
    id ^= id >> 27;
    id *= 0x94d049bb133111ebu;
    return (uint32_t)(id >> 32);
}

enum err_code sequence_map_init(struct sequence_map *m, uint32_t max, struct err *why)
{
    uint32_t n = 16;
    while (n / 2 < max)
        n *= 2;
    *m = (struct sequence_map){.mask = n - 1};
    m->slots = mem_zalloc_array(n, sizeof *m->slots);
    if (m->slots == NULL) return err_nomem(why, "the table of sequences");
    return ERR_OK;
}

void sequence_map_deinit(struct sequence_map *m)
{
    mem_free(m->slots);
    *m = (struct sequence_map){0};
}

static uint32_t place_of(const struct sequence_map *m, uint64_t id)
{
    uint32_t i = hash(id) & m->mask;
    while (m->slots[i] != NULL && m->slots[i]->id != id)
        i = (i + 1) & m->mask;
    return i;
}

struct sequence *sequence_map_find(const struct sequence_map *m, uint64_t id)
{
    return m->slots[place_of(m, id)];
}

void sequence_map_add(struct sequence_map *m, struct sequence *s)
{
    assert(m->n <= m->mask / 2);
    uint32_t i = place_of(m, s->id);
    assert(m->slots[i] == NULL);
    m->slots[i] = s;
    m->n++;
}

void sequence_map_remove(struct sequence_map *m, const struct sequence *s)
{
    uint32_t hole = place_of(m, s->id);
    assert(m->slots[hole] == s);
    /* Close the gap: whoever may stand at the hole without being before its own place moves there. */
    for (uint32_t i = (hole + 1) & m->mask; m->slots[i] != NULL; i = (i + 1) & m->mask) {
        uint32_t home = hash(m->slots[i]->id) & m->mask;
        if (((i - home) & m->mask) < ((i - hole) & m->mask)) continue;
        m->slots[hole] = m->slots[i];
        hole = i;
    }
    m->slots[hole] = NULL;
    m->n--;
}
