#include "common/base/metrics.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"

enum kind { COUNTER, GAUGE, HISTOGRAM };

static const struct info {
    enum kind kind;
    const char *name, *labels, *help;
} infos[METRIC_N] = {
#define X(kind, id, name, labels, help) [METRIC_##id] = {kind, name, labels, help},
#include "common/base/metrics.def"
#undef X
};

/* Seconds; from one network round trip to the longest request. One set for all, so that they can be compared. */
static const double bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,  0.1,
                                0.25,  0.5,    0.75,  1.0,  2.5,   5.0,   7.5,
                                10.0,  20.0,   40.0,  80.0, 160.0, 320.0, 640.0};
#define N_BOUNDS ARRAY_LEN(bounds)

struct histogram {
    _Atomic uint64_t buckets[N_BOUNDS + 1]; /* not cumulative; the last is +Inf */
    _Atomic double sum;
};

struct metrics {
    _Atomic uint64_t counters[METRIC_N]; /* sparse: indexed by id, whatever its kind */
    _Atomic double gauges[METRIC_N];
    struct histogram histograms[METRIC_N];
};

struct metrics *metrics_open(void)
{
    return mem_zalloc(sizeof(struct metrics));
}

void metrics_close(struct metrics *m)
{
    mem_free(m);
}

static void add(_Atomic double *to, double delta)
{
    double old = atomic_load_explicit(to, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(to, &old, old + delta, memory_order_relaxed,
                                                  memory_order_relaxed)) {
    }
}

void metrics_count(struct metrics *m, enum metric counter, uint64_t more)
{
    if (m == NULL) return;
    assert(infos[counter].kind == COUNTER);
    atomic_fetch_add_explicit(&m->counters[counter], more, memory_order_relaxed);
}

void metrics_set(struct metrics *m, enum metric gauge, double value)
{
    if (m == NULL) return;
    assert(infos[gauge].kind == GAUGE);
    atomic_store_explicit(&m->gauges[gauge], value, memory_order_relaxed);
}

void metrics_add(struct metrics *m, enum metric gauge, double delta)
{
    if (m == NULL) return;
    assert(infos[gauge].kind == GAUGE);
    add(&m->gauges[gauge], delta);
}

void metrics_observe(struct metrics *m, enum metric histogram, double seconds)
{
    if (m == NULL || isnan(seconds)) return;
    assert(infos[histogram].kind == HISTOGRAM);
    struct histogram *h = &m->histograms[histogram];
    size_t i = 0;
    while (i < N_BOUNDS && seconds > bounds[i])
        i++;
    atomic_fetch_add_explicit(&h->buckets[i], 1, memory_order_relaxed);
    add(&h->sum, seconds);
}

double metrics_value(const struct metrics *m, enum metric id)
{
    if (m == NULL) return 0;
    switch (infos[id].kind) {
    case COUNTER:
        return (double)atomic_load_explicit(&m->counters[id], memory_order_relaxed);
    case GAUGE:
        return atomic_load_explicit(&m->gauges[id], memory_order_relaxed);
    case HISTOGRAM:
        break;
    }
    uint64_t n = 0;
    for (size_t i = 0; i <= N_BOUNDS; i++)
        n += atomic_load_explicit(&m->histograms[id].buckets[i], memory_order_relaxed);
    return (double)n;
}

static void put_histogram(const struct histogram *h, const char *name, struct buf *out)
{
    uint64_t n = 0;
    for (size_t i = 0; i <= N_BOUNDS; i++) {
        n += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
        if (i < N_BOUNDS)
            buf_printf(out, "%s_bucket{le=\"%g\"} %llu\n", name, bounds[i], (unsigned long long)n);
        else
            buf_printf(out, "%s_bucket{le=\"+Inf\"} %llu\n", name, (unsigned long long)n);
    }
    buf_printf(out, "%s_sum %.9g\n%s_count %llu\n", name,
               atomic_load_explicit(&h->sum, memory_order_relaxed), name, (unsigned long long)n);
}

void metrics_put_text(const struct metrics *m, struct buf *out)
{
    static const char *const types[] = {"counter", "gauge", "histogram"};
    if (m == NULL) return;
    for (size_t i = 0; i < METRIC_N; i++) {
        const struct info *f = &infos[i];
        if (i == 0 || strcmp(f->name, infos[i - 1].name) != 0)
            buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", f->name, f->help, f->name,
                       types[f->kind]);
        if (f->kind == HISTOGRAM) {
            put_histogram(&m->histograms[i], f->name, out);
            continue;
        }
        buf_puts(out, f->name);
        if (f->labels[0] != '\0') buf_printf(out, "{%s}", f->labels);
        if (f->kind == COUNTER)
            buf_printf(
                out, " %llu\n",
                (unsigned long long)atomic_load_explicit(&m->counters[i], memory_order_relaxed));
        else
            buf_printf(out, " %.9g\n", atomic_load_explicit(&m->gauges[i], memory_order_relaxed));
    }
}
