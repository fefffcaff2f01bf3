/* step_pool.h - step objects, found by number in constant time and used again without allocating.
 * A number is serial * 2^20 + place in the table, so it names one use of one object and is never given twice. */
#ifndef MOESAIC_CLUSTER_STEP_POOL_H
#define MOESAIC_CLUSTER_STEP_POOL_H

#include "coordinator/cluster/dispatch.h"
#include "coordinator/cluster/list.h"

#define STEP_POOL_MAX (1u << 20)

enum step_state { STEP_FREE, STEP_QUEUED, STEP_SENT };

struct step {
    struct dispatch_step pub;
    enum step_state state;
    uint64_t timer_us; /* SENT: when its silence is too long */
    uint32_t place;    /* in the table */
    uint32_t cap;      /* entries that fit in `words` */
    uint32_t *words;   /* one block for all arrays of pub */
    struct list in_lot, in_lane, in_out;
    struct step *next_free;
};

struct step_pool {
    struct step **table; /* [cap] */
    uint32_t n, cap;
    struct step *free;
    uint64_t serial;
};

void step_pool_deinit(struct step_pool *p);
/* A step with room for n_entries and a new number, in no list; its arrays are given out by step_arrays.
 * NULL: no memory, or STEP_POOL_MAX steps are in use. */
struct step *step_pool_acquire(struct step_pool *p, uint32_t n_entries);
/* It must be in no list. */
void step_pool_release(struct step_pool *p, struct step *s);
struct step *step_pool_find(const struct step_pool *p, uint64_t id);
bool step_pool_was_given(const struct step_pool *p, uint64_t id);

/* Writable views of the arrays of pub, each [cap]. */
struct step_arrays {
    uint32_t *rows, *expert_rows, *row_index, *result_slot;
    uint16_t *experts;
};
struct step_arrays step_arrays(struct step *s);

#endif
