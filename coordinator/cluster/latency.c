#include "coordinator/cluster/latency.h"

#include <stdlib.h>
#include <string.h>

/* Sorting 256 numbers costs more than a dispatch, so the timeouts use a percentile that is up to this old. */
#define RESORT_EVERY 32u

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

uint64_t latency_percentile(const struct latency *l, uint32_t permille)
{
    uint32_t sorted[LATENCY_SAMPLES];
    size_t n = l->n < LATENCY_SAMPLES ? (size_t)l->n : LATENCY_SAMPLES;
    if (n == 0) return 0;
    memcpy(sorted, l->us, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare);
    size_t rank = (n * permille + 999) / 1000; /* nearest rank, from 1 */
    return sorted[rank == 0 ? 0 : rank - 1];
}

void latency_add(struct latency *l, uint64_t us)
{
    l->us[l->n % LATENCY_SAMPLES] = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
    l->n++;
    if (l->n < 8 || l->n % RESORT_EVERY == 0) l->p99_us = latency_percentile(l, 990);
}
