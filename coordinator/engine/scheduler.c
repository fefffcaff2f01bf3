#include "coordinator/engine/scheduler.h"

#include "common/base/check.h"

enum err_code scheduler_init(struct scheduler *s, const struct engine_cfg *cfg, struct err *why)
{
    *s = (struct scheduler){
        .max_running = cfg->max_running,
        .chunk = cfg->chunk,
        .max_decode_rows = cfg->max_decode_rows,
        .prefill_logit_rows = cfg->prefill_logit_rows == 0 ? cfg->chunk : cfg->prefill_logit_rows,
        .starved_age = UINT64_MAX,
    };
    list_init(&s->waiting);
    list_init(&s->running);
    return kv_cache_init(&s->kv, cfg->n_kv_blocks, why);
}

void scheduler_deinit(struct scheduler *s)
{
    kv_cache_deinit(&s->kv);
}

static struct sequence *at(struct list *l)
{
    return LIST_OBJECT(l, struct sequence, link);
}

static bool is_idle(const struct sequence *q)
{
    return q->state == SEQUENCE_PREFILL || q->state == SEQUENCE_READY;
}

void scheduler_submit(struct scheduler *s, struct sequence *q)
{
    list_append(&s->waiting, &q->link);
    s->n_waiting++;
}

void scheduler_release(struct scheduler *s, struct sequence *q)
{
    kv_cache_clear(&s->kv, q->blocks, &q->n_blocks);
    q->n_kv = 0;
}

void scheduler_leave(struct scheduler *s, struct sequence *q)
{
    list_remove(&q->link);
    if (q->state == SEQUENCE_WAITING)
        s->n_waiting--;
    else
        s->n_running--;
    if (q->state == SEQUENCE_IN_PASS)
        q->state = SEQUENCE_GONE;
    else
        scheduler_release(s, q);
}

static void preempt(struct scheduler *s, struct sequence *q)
{
    scheduler_release(s, q);
    list_remove(&q->link);
    s->n_running--;
    q->state = SEQUENCE_WAITING;
    q->was_preempted = true;
    /* In order of age: the front, unless older ones were preempted before. */
    struct list *where = &s->waiting;
    while (where->next != &s->waiting && at(where->next)->age < q->age)
        where = where->next;
    list_insert_after(where, &q->link);
    s->n_waiting++;
    s->preemptions++;
}

/* Take the blocks of somebody for q. */
static bool preempt_for(struct scheduler *s, const struct sequence *q)
{
    for (struct list *l = s->running.prev; l != &s->running; l = l->prev) {
        struct sequence *victim = at(l);
        if (victim->age <= q->age) break;
        if (!is_idle(victim) || victim->n_blocks == 0) continue;
        preempt(s, victim);
        return true;
    }
    /* Older ones that nobody reads at the moment: else a stopped reader could stop everybody. */
    for (struct list *l = s->running.prev; l != &s->running; l = l->prev) {
        struct sequence *victim = at(l);
        if (victim->age >= q->age || !victim->paused || victim->state != SEQUENCE_READY ||
            victim->n_blocks == 0)
            continue;
        preempt(s, victim);
        return true;
    }
    return false;
}

static bool younger_in_pass(const struct scheduler *s, const struct sequence *q)
{
    for (struct list *l = s->running.prev; l != &s->running && at(l)->age > q->age; l = l->prev)
        if (at(l)->state == SEQUENCE_IN_PASS) return true;
    return false;
}

/* Make room for up to n more tokens of q; answers for how many there is, 0 if fewer than `least`. */
static uint32_t make_room(struct scheduler *s, struct sequence *q, uint32_t n, uint32_t least)
{
    uint32_t covered = kv_cache_grow(&s->kv, q->blocks, &q->n_blocks, q->n_kv + n);
    while (covered < q->n_kv + n && preempt_for(s, q))
        covered = kv_cache_grow(&s->kv, q->blocks, &q->n_blocks, q->n_kv + n);
    uint32_t room = covered - q->n_kv;
    if (room < least) room = 0;
    if (room > 0) {
        if (s->starved_age == q->age) s->starved_age = UINT64_MAX;
    } else if (younger_in_pass(s, q)) {
        s->starved_age = q->age;
    }
    return room;
}

/* The starving one may have left or been paused: then nobody waits for it. */
static void check_starved(struct scheduler *s)
{
    if (s->starved_age == UINT64_MAX) return;
    for (struct list *l = s->running.next; l != &s->running; l = l->next) {
        const struct sequence *q = at(l);
        if (q->age == s->starved_age && is_idle(q) && !(q->paused && q->state == SEQUENCE_READY))
            return;
    }
    s->starved_age = UINT64_MAX;
}

/* ---- decode ------------------------------------------------------------------------------------ */

static void fill_decode(struct scheduler *s, struct pass *p, uint64_t after, uint64_t upto)
{
    for (struct list *l = s->running.next; l != &s->running && p->n_rows < p->cap; l = l->next) {
        struct sequence *q = at(l);
        if (q->state != SEQUENCE_READY || q->paused || q->age <= after || q->age > upto) continue;
        if (q->age > s->starved_age) break;
        /* Preempting takes younger ones out of the list, never q itself or what lies before it, except paused ones. */
        if (make_room(s, q, 1, 1) == 0) continue;
        pass_add(p, q, 1);
        s->decode_cursor = q->age;
    }
}

/* ---- prefill ----------------------------------------------------------------------------------- */

/* Of the next tokens of q, at most n, how many may enter with the logit rows that are left. */
static uint32_t limit_logits(const struct scheduler *s, const struct pass *p,
                             const struct sequence *q, uint32_t n)
{
    uint32_t left = s->prefill_logit_rows - p->n_logit_rows;
    for (uint32_t i = 0; i < n; i++) {
        if (!pass_wants_logits(q, q->n_kv + i)) continue;
        if (left-- == 0) return i;
    }
    return n;
}

/* Of a chunk of n rows, how many must go together: the encoder's all, as each looks at every other. */
static uint32_t least_rows(const struct sequence *q, uint32_t n)
{
    return q->n_kv < q->n_encoder ? n : 1;
}

/* Rows of q that this pass has room for, blocks aside. Rows of encoder and decoder are not mixed. */
static uint32_t next_chunk(const struct scheduler *s, const struct pass *p,
                           const struct sequence *q)
{
    uint32_t n = q->n_tokens - q->n_kv;
    const bool encodes = q->n_kv < q->n_encoder;
    if (p->n_rows > 0 && encodes != p->encodes) return 0;
    if (encodes) return q->n_encoder <= p->cap - p->n_rows ? q->n_encoder : 0;
    if (n > p->cap - p->n_rows) n = p->cap - p->n_rows;
    return limit_logits(s, p, q, n);
}

static void fill_prefill(struct scheduler *s, struct pass *p)
{
    for (struct list *l = s->running.next; l != &s->running && p->n_rows < p->cap; l = l->next) {
        struct sequence *q = at(l);
        if (q->age > s->starved_age) return;
        if (q->state != SEQUENCE_PREFILL) continue;
        uint32_t n = next_chunk(s, p, q);
        if (n == 0) return; /* no logit row left, or rows of another kind: nobody overtakes */
        n = make_room(s, q, n, least_rows(q, n));
        if (n > 0) pass_add(p, q, n);
    }
    if (s->starved_age != UINT64_MAX) return;
    for (struct list *l = s->waiting.next, *next; l != &s->waiting && p->n_rows < p->cap;
         l = next) {
        next = l->next;
        struct sequence *q = at(l);
        if (q->paused && sequence_n_output(q) > 0) continue; /* it would only sample again */
        if (s->n_running >= s->max_running) return;
        uint32_t n = next_chunk(s, p, q);
        if (n == 0) return;
        /* One that was preempted comes back when all of it fits, else it would be thrown out again half-way. */
        uint32_t need = kv_cache_blocks(q->was_preempted ? q->n_tokens : n);
        if (s->kv.n_free < need) return;
        list_remove(&q->link);
        s->n_waiting--;
        struct list *where = s->running.prev;
        while (where != &s->running && at(where)->age > q->age)
            where = where->prev;
        list_insert_after(where, &q->link);
        s->n_running++;
        q->state = SEQUENCE_PREFILL;
        n = make_room(s, q, n, least_rows(q, n));
        assert(n > 0);
        pass_add(p, q, n);
    }
}

bool scheduler_fill(struct scheduler *s, struct pass *p)
{
    assert(p->state == PASS_FREE);
    pass_clear(p);
    check_starved(s);
    if (p->is_prefill) {
        fill_prefill(s, p);
        return p->n_rows > 0;
    }
    uint32_t n_ready = 0;
    for (struct list *l = s->running.next; l != &s->running; l = l->next)
        n_ready += at(l)->state == SEQUENCE_READY && !at(l)->paused;
    if (n_ready <= p->cap) {
        fill_decode(s, p, 0, UINT64_MAX);
    } else { /* in turn: where the last pass stopped, then from the oldest */
        uint64_t cursor = s->decode_cursor;
        fill_decode(s, p, cursor, UINT64_MAX);
        fill_decode(s, p, 0, cursor);
    }
    return p->n_rows > 0;
}
