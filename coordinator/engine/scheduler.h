/* scheduler.h - who computes next: the waiting and running sequences, the KV blocks, and the choice of rows for a pass.
 * Part of the engine; one thread; nothing allocates after init.
 *
 * Blocks are given in order of age. A sequence that needs one when none is free takes all blocks of the youngest
 * idle sequence that is younger than itself (or paused), which waits at the front of the queue and is prefilled again.
 * If the blocks are with younger sequences that are in a pass, no younger one may enter a pass until it has got its
 * blocks: so the oldest always makes progress. */
#ifndef MOESAIC_ENGINE_SCHEDULER_H
#define MOESAIC_ENGINE_SCHEDULER_H

#include "coordinator/engine/kv_cache.h"
#include "coordinator/engine/pass.h"
#include "coordinator/engine/sequence.h"

struct scheduler {
    struct kv_cache kv;
    struct list waiting,
        running; /* both in order of age, except that a paused sequence may be passed over */
    uint32_t n_waiting, n_running;
    uint32_t max_running, chunk, max_decode_rows, prefill_logit_rows;
    uint64_t
        starved_age; /* sequences younger than this stay out of passes; UINT64_MAX: none starves */
    uint64_t decode_cursor; /* age of the last sequence that got a decode row, when not all fit */
    uint64_t preemptions;
};

enum err_code scheduler_init(struct scheduler *s, const struct engine_cfg *cfg, struct err *why);
void scheduler_deinit(struct scheduler *s);

void scheduler_submit(struct scheduler *s, struct sequence *q);
/* Out of its list, for good. Its blocks go back unless it is in a pass; then they go with scheduler_release. */
void scheduler_leave(struct scheduler *s, struct sequence *q);
void scheduler_release(struct scheduler *s, struct sequence *q);

/* Fill a FREE pass; false: nobody can go. */
bool scheduler_fill(struct scheduler *s, struct pass *p);

#endif
