/* sim.h - a whole cluster in one process under a virtual clock: the real engine, simulated nodes that delay, reorder,
 * refuse, freeze, lose streams, crash and come back, clients that leave and stop reading, memory that runs short.
 * Everything is drawn from one seed, so a failure can be run again. */
#ifndef MOESAIC_TESTS_SIM_SIM_H
#define MOESAIC_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/buf.h"

/* What happened, so that a test can tell that the interesting things did. */
struct sim_totals {
    uint64_t seeds, events, submitted, refused, completed, cancelled, unavailable, timeout, replays,
        preemptions, lost, late, waits_for_experts;
};

/* Run one seed. False: `why` (512 bytes) says what was wrong. trace and totals may be NULL. Checked: each request ends
 * exactly once and by its deadline, completely if its deadline is far; its tokens are the model's; steps are as
 * dispatch.h promises; in the end no KV block, pass or request is left. */
bool sim_run(uint64_t seed, struct buf *trace, struct sim_totals *totals, char why[512]);

#endif
