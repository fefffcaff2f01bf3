/* The whole engine against simulated nodes: many seeds, each another cluster with other faults.
 * SIM_SEED=n runs one seed and prints its trace, SIM_SEEDS=n runs that many. */
// links: engine node
// sources: sim.c sim_cluster.c sim_node.c rig.c fake_model.c
#include <criterion/criterion.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/check.h"
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

#define SEED_SECONDS 20 /* a seed takes milliseconds; one that takes so long does not end */
#define TAIL_BYTES   8000

/* The seed that runs, for the handler of signals. */
static struct {
    uint64_t seed;
    const struct buf *trace;
} now;

static void say(const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = write(STDERR_FILENO, text, len);
        if (n <= 0) return;
        text += n;
        len -= (size_t)n;
    }
}

/* An assertion of the engine, a bad access, a loop without end: the seed and what it had told until then. */
static void on_signal(int number)
{
    char line[200];
    if (now.trace != NULL && now.trace->len > 0) say(now.trace->data, now.trace->len);
    int n =
        snprintf(line, sizeof line,
                 "seed %llu: %s (run `SIM_SEED=%llu build/tests/test_sim` for the whole story)\n",
                 (unsigned long long)now.seed,
                 number == SIGALRM   ? "it does not end"
                 : number == SIGABRT ? "an assertion fails"
                                     : "it crashes",
                 (unsigned long long)now.seed);
    say(line, (size_t)n);
    signal(number, SIG_DFL);
    raise(number);
}

static bool run_seed(uint64_t seed, struct buf *trace, struct sim_totals *totals, char why[512])
{
    now.seed = seed;
    now.trace = trace;
    alarm(SEED_SECONDS);
    bool ok = sim_run(seed, trace, totals, why);
    alarm(0);
    return ok;
}

/* The world, then what happened last; all of it where `whole`. */
static void print_story(uint64_t seed, bool whole)
{
    struct buf trace = {0};
    char why[512];
    run_seed(seed, &trace, NULL, why);
    if (trace.len == 0) return;
    const char *first = memchr(trace.data, '[', trace.len), *from = trace.data;
    if (!whole && trace.len > TAIL_BYTES && first != NULL) {
        const char *tail = strchr(trace.data + trace.len - TAIL_BYTES, '\n') + 1;
        if (tail > first) {
            fprintf(stderr, "%.*s...\n", (int)(first - trace.data), trace.data);
            from = tail;
        }
    }
    fprintf(stderr, "%sseed %" PRIu64 ": %s\n", from, seed, why[0] != 0 ? why : "fine");
    buf_free(&trace);
}

Test(sim, every_request_ends_once_with_the_tokens_of_the_model_whatever_happens)
{
    struct sim_totals t = {0};
    char why[512];
    uint64_t only = from_env("SIM_SEED", 0), n = from_env("SIM_SEEDS", SEEDS);
    static const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGALRM};
    for (size_t i = 0; i < ARRAY_LEN(signals); i++)
        signal(signals[i], on_signal);
    if (only != 0) {
        print_story(only, true);
        cr_assert(run_seed(only, NULL, &t, why), "seed %" PRIu64 ": %s", only, why);
        return;
    }
    for (uint64_t seed = 1; seed <= n; seed++) {
        if (run_seed(seed, NULL, &t, why)) continue;
        print_story(seed, false);
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
