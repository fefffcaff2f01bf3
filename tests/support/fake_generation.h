/* fake_generation.h - a generation service without a model: emits a script, one token per sequence and step, from a
 * timer on the loop. Set the fields before it is used; counters may be read from another thread. */
#ifndef MOESAIC_TESTS_FAKE_GENERATION_H
#define MOESAIC_TESTS_FAKE_GENERATION_H

#include <stdatomic.h>
#include <uv.h>

#include "coordinator/api/generation.h"

#define FAKE_SEQUENCES 64

struct fake_sequence {
    bool used, paused;
    uint64_t handle;
    struct generation_spec spec;
    generation_sink sink;
    void *ctx;
    uint32_t n_prompt_sent, n_sent;
    int32_t *prompt;
};

struct fake_generation {
    uv_loop_t *loop;
    uv_timer_t timer;
    const int32_t *script; /* what every sequence says; borrowed */
    uint32_t n_script;
    bool endless; /* the script repeats */
    int32_t eos;
    uint32_t capacity;                    /* sequences at once, then EXHAUSTED; 0: FAKE_SEQUENCES */
    uint32_t per_step;                    /* tokens per sequence and step; 0: 1 */
    _Atomic bool hold;                    /* all stay in the queue */
    int fail_at;                          /* output token before which it fails; -1: never */
    enum err_code fail_code, refuse_code; /* refuse_code: what start answers, if not OK */
    bool ready;
    const char *reason, *view; /* of ready and cluster */
    struct fake_sequence sequences[FAKE_SEQUENCES];
    uint64_t next_handle;
    _Atomic uint32_t n_started, n_cancelled, n_paused, n_resumed, n_tokens, n_live;
    struct generation_spec last_spec; /* without its prompt; its bias is last_bias */
    struct logit_bias last_bias[8];
    int32_t last_prompt[512];
    uint32_t n_last_prompt;
};

void fake_generation_init(struct fake_generation *f, uv_loop_t *loop);
void fake_generation_stop(struct fake_generation *f); /* closes the timer; run the loop once more */
struct generation_service fake_generation_service(struct fake_generation *f);

#endif
