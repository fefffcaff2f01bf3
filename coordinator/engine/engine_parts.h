/* engine_parts.h - the inside of an engine, shared by engine.c (events in) and progress.c (what follows from them).
 * Nobody else includes it. */
#ifndef MOESAIC_ENGINE_ENGINE_PARTS_H
#define MOESAIC_ENGINE_ENGINE_PARTS_H

#include "coordinator/engine/engine.h"
#include "coordinator/engine/pass.h"
#include "coordinator/engine/scheduler.h"
#include "coordinator/engine/sequence.h"

#define ENGINE_TEXT_MAX 192u

struct engine {
    struct engine_cfg
        cfg; /* is_moe and eos: own copies; placement: not used, the dispatch has it */
    bool *is_moe;
    int32_t *eos;
    uint32_t n_slots, max_sequences;
    struct pass *passes; /* [n_slots] */
    struct scheduler scheduler;
    struct sequence_map sequences; /* without those GONE */
    struct dispatch *dispatch;
    uint64_t now_us, last_age;
    uint64_t deadline_us; /* no sequence's is earlier */
    bool look;            /* something changed that may let a pass begin */
    uint64_t tokens_prefilled, tokens_decoded;

    /* Room for everything one event can cause, SENDs aside, which can wait for the next event. */
    struct engine_action *actions;
    size_t n_actions, cap_actions;
    char (*texts)[ENGINE_TEXT_MAX]; /* [max_sequences] of FINISH */
    uint32_t n_texts;
};

/* Tell the outside that the sequence failed and let it go. */
void engine_fail(struct engine *e, struct sequence *q, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The sequence leaves; its rows in a pass are dead from now on. */
void engine_leave(struct engine *e, struct sequence *q);
/* The last job of a pass is done: its results, or its experts. */
void engine_computed(struct engine *e, struct pass *p, const struct engine_event *ev);
/* After any event: deadlines, passes that can go on, passes that can begin, steps to send. */
void engine_progress(struct engine *e);

#endif
