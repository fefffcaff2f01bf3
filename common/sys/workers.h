/* workers.h - a parallel-for pool that its leader takes part in. The leader is the one thread that calls
 * workers_run(); between tasks it may pump (poll the network), so flow control and keepalive do not stall
 * behind long work. While work is expected helpers spin for a while, then sleep. */
#ifndef MOESAIC_SYS_WORKERS_H
#define MOESAIC_SYS_WORKERS_H

#include <stdint.h>

#include "common/base/err.h"

struct workers;

/* n_threads counts the leader: 1 means no further thread. spin_us 0: helpers sleep at once. */
enum err_code workers_open(unsigned n_threads, uint32_t spin_us, struct workers **out,
                           struct err *why);
void workers_close(struct workers *w);
unsigned workers_count(const struct workers *w);

/* Called on the leader between tasks, at most once per ~200 us. NULL: none. Must not call workers_run. */
void workers_set_pump(struct workers *w, void (*pump)(void *ctx), void *ctx);

/* Run fn(ctx, task, worker) for task 0..n-1, in any order, worker < workers_count(); returns when all are done.
 * Results must not depend on which worker runs what. */
void workers_run(struct workers *w, uint32_t n_tasks,
                 void (*fn)(void *ctx, uint32_t task, unsigned worker), void *ctx);

#endif
