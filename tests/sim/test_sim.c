/* The whole engine against simulated nodes: many seeds, each another cluster with other faults.
 * SIM_SEED=n runs one seed and prints its trace, SIM_SEEDS=n runs that many. */
// links: engine
// sources: sim.c rig.c fake_model.c
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

#define SEEDS 400

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
        cr_assert_fail("seed %" PRIu64 ": %s (SIM_SEED=%" PRIu64 " prints the whole trace)", seed,
                       why, seed);
    }
    fprintf(stderr,
            "%" PRIu64 " seeds, %" PRIu64 " events: %" PRIu64 " submitted (%" PRIu64
            " refused), %" PRIu64 " completed, %" PRIu64 " cancelled, %" PRIu64
            " unavailable, %" PRIu64 " timed out; %" PRIu64 " rows replayed, %" PRIu64
            " preemptions, %" PRIu64 " streams lost, %" PRIu64 " late answers\n",
            t.seeds, t.events, t.submitted, t.refused, t.completed, t.cancelled, t.unavailable,
            t.timeout, t.replays, t.preemptions, t.lost, t.late);
    if (n < SEEDS) return;
    /* A simulator in which nothing happens would pass too. */
    cr_expect_gt(t.completed, 500);
    cr_expect_gt(t.cancelled, 20);
    cr_expect_gt(t.unavailable, 5);
    cr_expect_gt(t.timeout, 5);
    cr_expect_gt(t.refused, 20);
    cr_expect_gt(t.replays, 500);
    cr_expect_gt(t.preemptions, 20);
    cr_expect_gt(t.late, 20);
    cr_expect_gt(t.waits_for_experts, 20);
}
