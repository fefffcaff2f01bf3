/* bench_requests.h - completions of random prompts, all at once, with the times at which their tokens came. */
#ifndef MOESAIC_CLI_BENCH_REQUESTS_H
#define MOESAIC_CLI_BENCH_REQUESTS_H

#include <stdint.h>

#include "common/base/err.h"

struct bench_requests {
    const char *http; /* the server */
    uint32_t vocab;
    unsigned n, prompt, tokens; /* streams at once; tokens in and out of each */
    const volatile int *stop;   /* nonzero: end with CANCELLED */
};

/* Each in a thread of its own, which sleeps while it waits. No prompt is ever the same as another. `began_ns`: when the
 * first was sent; at_ns [n][tokens]: when each token came, clock_now_ns(). UNAVAILABLE with what the server says. */
enum err_code bench_requests_run(const struct bench_requests *q, uint64_t *began_ns,
                                 uint64_t *at_ns, struct err *why);

#endif
