/* engine_metrics.h - what the engine and the nodes look like, into the metrics registry, a few times per second.
 * Engine thread; the registry is read by the loop. */
#ifndef MOESAIC_DRIVERS_ENGINE_METRICS_H
#define MOESAIC_DRIVERS_ENGINE_METRICS_H

#include "common/base/metrics.h"
#include "coordinator/drivers/node_driver.h"
#include "coordinator/engine/engine.h"

/* Totals at the last publication: counters are fed with differences. */
struct engine_metrics {
    uint64_t steps, replays, bytes_out, bytes_in;
    uint64_t next_us;
};

/* Does something only when a quarter of a second has passed. */
void engine_metrics_publish(struct engine_metrics *last, struct metrics *m, const struct engine *e,
                            const struct node_driver *nodes, uint64_t now_us);

#endif
