/* engine.h - the scheduler as a pure state machine: no clock, socket, thread, randomness or arithmetic inside.
 * Time arrives in events, what to do leaves as actions; drivers (real or simulated) do it.
 * One thread owns an engine.
 *
 * A sequence waits, is prefilled in chunks, then decoded token by token. A pass is decode-only or prefill-only,
 * sits in a slot and advances through the layers by itself:
 *
 *   COMPUTE(layer 0) -> COMPUTED, routing -> SEND to nodes ... REPLY x n -> COMPUTE(combine 0, layer 1) -> ...
 *   -> COMPUTE(combine last, head) -> COMPUTED, tokens -> EMIT per token, FINISH
 *
 * A pass that waits for an expert no live node holds is in a visible state and goes on when a node is back; its
 * sequences fail at their deadline. A slot whose rows are all dead is dropped; late replies are unknown steps.
 * A dead row beside live ones stays in its pass, whose attention goes on writing its keys and values: therefore the
 * blocks of a sequence that left go back when its pass ends, not before.
 * The result slots of dead rows hold rubbish. A prefill pass in which nobody wants logits ends with the last layer's
 * experts, without a combine and a head.
 * When KV blocks run out the youngest sequence gives its blocks back and is prefilled again later from its
 * tokens: because answers do not depend on chunking, nobody can tell. */
#ifndef MOESAIC_ENGINE_H
#define MOESAIC_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "coordinator/cluster/dispatch.h"
#include "coordinator/cluster/placement.h"

#define ENGINE_KV_BLOCK_TOKENS 64u

struct engine_cfg {
    uint32_t n_layers, n_experts, top_k; /* n_experts 0: dense model */
    const bool *is_moe;                  /* [n_layers], copied */
    /* An encoder-decoder model: layers [0, n_encoder_layers) are the encoder's. Of a prompt the last token is the decoder's
     * first, all before it are the encoder's, and go through its layers in one pass, as each sees all others. 0: none. */
    uint32_t n_encoder_layers;
    uint32_t ctx; /* most tokens of one sequence, prompt and output together */
    uint32_t n_kv_blocks;
    uint32_t chunk;              /* most prompt rows in one prefill pass */
    uint32_t max_decode_rows;    /* most sequences in one decode pass */
    uint32_t prefill_logit_rows; /* most logit rows in one prefill pass (prompt_logits); 0: chunk */
    uint32_t decode_slots, prefill_slots; /* passes in flight; slot numbers: decode first */
    uint32_t max_running;                 /* sequences with KV at once */
    uint32_t max_waiting;                 /* then EXHAUSTED */
    const int32_t *eos;                   /* copied */
    uint32_t n_eos;
    /* Long rope: sequences of more tokens are computed another way (rows say so), from their first token on: when one grows
     * past it, it is computed anew. 0: no such length. */
    uint32_t rope_length;
    struct dispatch_cfg dispatch;
    struct placement *placement; /* acquired */
};

enum engine_event_kind {
    ENGINE_SUBMIT,
    ENGINE_CANCEL, /* sequence: no EMIT or FINISH follows */
    ENGINE_PAUSE,  /* sequence: keep it out of decode passes */
    ENGINE_RESUME,
    ENGINE_COMPUTED,    /* the job of a slot is done */
    ENGINE_REPLY,       /* a step was answered; results already lie in the pass */
    ENGINE_STEP_FAILED, /* a step was refused or could not be sent: ask another replica */
    ENGINE_NODE_UP,     /* node, lane: stream open, hello agreed */
    ENGINE_NODE_DOWN,   /* node, lane */
    ENGINE_PLACEMENT, /* a new placement, for passes that begin from now on; waiting steps look again */
    ENGINE_TICK,      /* time passes; see engine_next_timer_us */
};

/* One sampled row of a finished head. */
struct engine_token {
    int32_t token;
    bool bad; /* the row was not finite: its request fails */
};

struct engine_event {
    enum engine_event_kind kind;
    uint64_t now_us;
    union {
        struct {
            uint64_t sequence;     /* caller's name, not in use */
            const int32_t *prompt; /* copied */
            uint32_t n_prompt, max_tokens;
            bool ignore_eos;
            bool prompt_logits;   /* every prompt row wants logits (EMIT with is_prompt) */
            uint64_t deadline_us; /* absolute */
        } submit;
        uint64_t sequence; /* CANCEL, PAUSE, RESUME */
        struct {
            uint32_t slot;
            const uint16_t *experts; /* [rows, top_k] ascending, after a MoE layer's attention */
            const int
                *bad_layer; /* [rows] -1, or the layer whose values were not finite; may be NULL */
            const struct engine_token *tokens; /* [logit rows], after a head */
        } computed;
        struct {
            uint64_t step;
            const char *why; /* STEP_FAILED: for the log */
        } reply;
        struct {
            uint32_t node;
            enum dispatch_lane lane;
        } node;
        struct placement *placement; /* acquired */
    };
};

/* One row of a pass. */
struct engine_row {
    uint64_t sequence;
    int32_t token;
    uint32_t position;
    const uint32_t *blocks; /* of its sequence; valid while the pass lives */
    bool wants_logits;
    bool beyond;           /* rope_length */
    bool samples;          /* its token continues the sequence (else: prompt logits only) */
    uint32_t output_index; /* of the token it samples */
    const int32_t
        *tokens; /* of its sequence: the prompt, then the output [n_prompt + output_index] */
    uint32_t n_prompt;
    uint32_t n_encoder; /* tokens of its sequence that are the encoder's; 0: no encoder */
    bool dead; /* its sequence has left: results are not needed, experts and tokens not looked at */
};

struct engine_job {
    uint32_t slot;
    bool begin;        /* load the rows first */
    int combine_layer; /* -1: none */
    int first_layer,
        last_layer; /* attention of these; only the last may be MoE. first > last: none */
    bool head;      /* of the encoder's rows: its end, what the decoder will look at */
};

enum engine_finish { ENGINE_FINISH_EOS, ENGINE_FINISH_LENGTH, ENGINE_FINISH_FAILED };

enum engine_action_kind { ENGINE_ACT_COMPUTE, ENGINE_ACT_SEND, ENGINE_ACT_EMIT, ENGINE_ACT_FINISH };

struct engine_action {
    enum engine_action_kind kind;
    union {
        struct engine_job compute;
        const struct dispatch_step *send; /* valid until answered or dropped */
        struct {
            uint64_t sequence;
            uint32_t slot, row, logit_row; /* logits lie in this slot until the next engine_step */
            bool
                is_prompt; /* logits of prompt position `index`: they give the logprob of prompt token index + 1 */
            uint32_t index; /* prompt position, or number of the output token */
            int32_t
                token; /* the output token; for is_prompt the prompt token index + 1, -1 if there is none */
        } emit;
        struct {
            uint64_t sequence;
            enum engine_finish reason;
            enum err_code code; /* FAILED */
            const char *text;   /* FAILED; valid until the next step */
        } finish;
    };
};

struct engine_actions {
    const struct engine_action *items;
    size_t n;
};

struct engine;

enum err_code engine_open(const struct engine_cfg *cfg, struct engine **out, struct err *why);
void engine_close(struct engine *e);

/* One turn: take one event, change only e, list what the outside should now do, in order; the list is valid until
 * the next step. For SUBMIT: EXHAUSTED (queue full), CONTEXT (n_prompt + max_tokens > ctx, both in the text),
 * INVALID; nothing changed then. Other events answer ERR_OK, or INTERNAL/EXHAUSTED when memory is short and the
 * event could not be taken (it may be given again), INVALID for a placement of another shape. A refused event has no
 * actions. In one list an EMIT comes before the COMPUTE that begins the next pass in its slot. */
enum err_code engine_step(struct engine *e, const struct engine_event *ev,
                          struct engine_actions *todo, struct err *why);

/* When a TICK is due; UINT64_MAX: none. */
uint64_t engine_next_timer_us(const struct engine *e);

/* The rows of the pass in a slot. */
const struct engine_row *engine_rows(const struct engine *e, uint32_t slot, uint32_t *n);
/* The step of that number, if it is still wanted. */
const struct dispatch_step *engine_find_step(const struct engine *e, uint64_t step);

struct engine_stats {
    uint32_t waiting, running, paused, passes, passes_waiting_for_experts;
    uint32_t kv_blocks, kv_blocks_used;
    uint64_t preemptions, tokens_prefilled, tokens_decoded;
};
void engine_stats(const struct engine *e, struct engine_stats *out);
const struct dispatch *engine_dispatch(const struct engine *e);

#endif
