/* metrics.h - counters, gauges and histograms, declared once in metrics.def. One struct per process, made at start
 * and passed to whoever counts; any thread may write and read it. All functions take a NULL registry and do
 * nothing, so that tests and tools need none. */
#ifndef MOESAIC_BASE_METRICS_H
#define MOESAIC_BASE_METRICS_H

#include <stdint.h>

#include "common/base/buf.h"

enum metric {
#define X(kind, id, name, labels, help) METRIC_##id,
#include "common/base/metrics.def"
#undef X
    METRIC_N
};

struct metrics;

struct metrics *metrics_open(void); /* all zero; NULL when memory is short */
void metrics_close(struct metrics *m);

void metrics_count(struct metrics *m, enum metric counter, uint64_t more);
void metrics_set(struct metrics *m, enum metric gauge, double value);
void metrics_add(struct metrics *m, enum metric gauge, double delta); /* may be negative */
void metrics_observe(struct metrics *m, enum metric histogram, double seconds);

/* Present value of a counter or gauge; how many observations of a histogram. */
double metrics_value(const struct metrics *m, enum metric id);

/* Append all series in Prometheus' text format 0.0.4. */
void metrics_put_text(const struct metrics *m, struct buf *out);

#endif
