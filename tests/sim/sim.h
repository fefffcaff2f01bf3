/* sim.h - a whole cluster in one process under a virtual clock: the real engine, dispatch and node cores; a network that
 * delays, loses streams and brings a step twice; nodes that freeze, slow down, refuse, run out of queue and memory, die
 * and come back; experts that move; clients that leave and stop reading; memory that runs short. Everything is drawn from
 * one seed, so a failure can be run again. */
#ifndef MOESAIC_TESTS_SIM_SIM_H
#define MOESAIC_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/buf.h"

enum sim_event {
#define SIM_EVENT(name, text, least) SIM_##name,
#include "tests/sim/sim_events.def"
#undef SIM_EVENT
    SIM_N_EVENTS
};

/* How often what happened. */
struct sim_totals {
    uint64_t seeds, events, counts[SIM_N_EVENTS];
};

/* Run one seed. False: `why` (512 bytes) says what was wrong. trace may be NULL; totals are added to. Checked: each request
 * ends exactly once and by its deadline, completely if its deadline is far; its tokens are the model's; steps are as
 * dispatch.h promises; nodes compute with weights that are there and end each step once; in the end no KV block, pass,
 * request or step is left. */
bool sim_run(uint64_t seed, struct buf *trace, struct sim_totals *totals, char why[512]);

#endif
