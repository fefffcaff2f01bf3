/* bench_machine.h - what this machine gives at most, on several threads at once. One caller at a time. */
#ifndef MOESAIC_CLI_BENCH_MACHINE_H
#define MOESAIC_CLI_BENCH_MACHINE_H

#include "common/base/err.h"
#include "common/kernels/kernels.h"

struct bench_machine;

/* threads >= 1; takes at least half a GiB of memory, more than any cache. EXHAUSTED. */
enum err_code bench_machine_open(const struct kernels *k, unsigned threads,
                                 struct bench_machine **out, struct err *why);
void bench_machine_close(struct bench_machine *m);

/* All threads together, for about a quarter of a second: bytes read per ns; multiplications and additions per ns of int8 or
 * f32 over registers alone. */
double bench_machine_read(struct bench_machine *m);
double bench_machine_peak(struct bench_machine *m, bool f32);

#endif
