/* The whole engine against simulated nodes: many seeds, each another cluster with other faults.
 * SIM_SEED=n runs one seed and prints its trace, SIM_SEEDS=n runs that many. */
// links: engine node
// sources: sim.c sim_cluster.c sim_node.c rig.c fake_model.c
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

#define SEEDS 1000

static const struct {
    const char *text;
    uint64_t least;
} events[SIM_N_EVENTS] = {
#define SIM_EVENT(name, text, least) [SIM_##name] = {text, least},
#include "tests/sim/sim_events.def"
#undef SIM_EVENT
};

static void print_totals(const struct sim_totals *t)
{
    fprintf(stderr, "%" PRIu64 " seeds, %" PRIu64 " events\n", t->seeds, t->events);
    for (size_t i = 0; i < SIM_N_EVENTS; i++)
        fprintf(stderr, "%10" PRIu64 "  %s\n", t->counts[i], events[i].text);
}

static uint64_t from_env(const char *name, uint64_t otherwise)
{
    const char *v = getenv(name);
    return v == NULL ? otherwise : strtoull(v, NULL, 10);
}

static void print_failure(uint64_t seed, const char *why, bool whole)
{
    struct buf trace = {0};
    char again[512];
    sim_run(seed, &trace, NULL, again);
    const char *from = trace.data == NULL ? "" : trace.data;
    if (!whole && trace.len > 6000) from = trace.data + trace.len - 6000;
    fprintf(stderr, "%s\nseed %" PRIu64 ": %s\n", from, seed, why[0] != 0 ? why : "fine");
    buf_free(&trace);
}

Test(sim, every_request_ends_once_with_the_tokens_of_the_model_whatever_happens)
{
    struct sim_totals t = {0};
    char why[512];
    uint64_t only = from_env("SIM_SEED", 0), n = from_env("SIM_SEEDS", SEEDS);
    if (only != 0) {
        bool ok = sim_run(only, NULL, &t, why);
        print_failure(only, why, true);
        cr_assert(ok);
        return;
    }
    for (uint64_t seed = 1; seed <= n; seed++) {
        if (sim_run(seed, NULL, &t, why)) continue;
        print_failure(seed, why, false);
        cr_assert_fail("seed %" PRIu64 ": %s (run `SIM_SEED=%" PRIu64
                       " build/tests/test_sim` for the whole story)",
                       seed, why, seed);
    }
    print_totals(&t);
    if (n < SEEDS) return;
    /* A simulator in which nothing happens would pass too. */
    for (size_t i = 0; i < SIM_N_EVENTS; i++)
        cr_expect_geq(t.counts[i], events[i].least, "%s: %" PRIu64 ", wanted are %" PRIu64,
                      events[i].text, t.counts[i], events[i].least);
}
