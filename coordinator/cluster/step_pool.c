#include "coordinator/cluster/step_pool.h"

#include "common/base/check.h"
#include "common/base/mem.h"

void step_pool_deinit(struct step_pool *p)
{
    for (uint32_t i = 0; i < p->n; i++) {
        mem_free(p->table[i]->words);
        mem_free(p->table[i]);
    }
    mem_free(p->table);
    *p = (struct step_pool){0};
}

static struct step *add_step(struct step_pool *p)
{
    if (p->n == STEP_POOL_MAX) return NULL;
    if (p->n == p->cap) {
        uint32_t cap = p->cap == 0 ? 64 : 2 * p->cap;
        struct step **table = mem_realloc(p->table, cap * sizeof *table);
        if (table == NULL) return NULL;
        p->table = table;
        p->cap = cap;
    }
    struct step *s = mem_zalloc(sizeof *s);
    if (s == NULL) return NULL;
    s->place = p->n;
    list_init(&s->in_lot);
    list_init(&s->in_lane);
    list_init(&s->in_out);
    p->table[p->n++] = s;
    return s;
}

struct step *step_pool_acquire(struct step_pool *p, uint32_t n_entries)
{
    assert(n_entries > 0);
    if (p->free == NULL) {
        p->free = add_step(p);
        if (p->free == NULL) return NULL;
    }
    struct step *s = p->free;
    if (s->cap < n_entries) {
        uint32_t cap = 16;
        while (cap < n_entries)
            cap *= 2;
        /* Four arrays of words and one of half words. */
        uint32_t *words = mem_alloc((size_t)cap * 18);
        if (words == NULL) return NULL;
        mem_free(s->words);
        s->words = words;
        s->cap = cap;
    }
    p->free = s->next_free;
    s->next_free = NULL;
    struct step_arrays a = step_arrays(s);
    s->pub = (struct dispatch_step){
        .id = ++p->serial * STEP_POOL_MAX + s->place,
        .rows = a.rows,
        .experts = a.experts,
        .expert_rows = a.expert_rows,
        .row_index = a.row_index,
        .result_slot = a.result_slot,
    };
    s->state = STEP_QUEUED;
    s->timer_us = UINT64_MAX;
    return s;
}

void step_pool_release(struct step_pool *p, struct step *s)
{
    assert(list_empty(&s->in_lot) && list_empty(&s->in_lane) && list_empty(&s->in_out));
    s->state = STEP_FREE;
    s->pub.id = 0;
    s->next_free = p->free;
    p->free = s;
}

struct step *step_pool_find(const struct step_pool *p, uint64_t id)
{
    uint64_t place = id % STEP_POOL_MAX;
    if (id == 0 || place >= p->n || p->table[place]->pub.id != id) return NULL;
    return p->table[place];
}

bool step_pool_was_given(const struct step_pool *p, uint64_t id)
{
    uint64_t serial = id / STEP_POOL_MAX;
    return serial >= 1 && serial <= p->serial && id % STEP_POOL_MAX < p->n;
}

struct step_arrays step_arrays(struct step *s)
{
    size_t cap = s->cap;
    return (struct step_arrays){
        .rows = s->words,
        .expert_rows = s->words + cap,
        .row_index = s->words + 2 * cap,
        .result_slot = s->words + 3 * cap,
        .experts = (uint16_t *)(s->words + 4 * cap),
    };
}
