/* latency.h - the last round trips of one lane, for percentiles. Caller's storage; zeroed is empty. One thread. */
#ifndef MOESAIC_CLUSTER_LATENCY_H
#define MOESAIC_CLUSTER_LATENCY_H

#include <stdint.h>

#define LATENCY_SAMPLES 256u

struct latency {
    uint32_t us[LATENCY_SAMPLES]; /* a ring */
    uint64_t n;                   /* ever added */
    uint64_t p99_us;              /* as of the last time it was worth sorting; 0: no sample yet */
};

void latency_add(struct latency *l, uint64_t us);
/* Over what the ring holds; 0 when it is empty. permille 500 is the median. Sorts: for status pages. */
uint64_t latency_percentile(const struct latency *l, uint32_t permille);

#endif
