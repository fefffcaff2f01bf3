/* progress.c - what follows from an event: passes advance, end or are dropped, tokens and failures are told, new
 * passes begin. */
#include <stdarg.h>
#include <stdio.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "coordinator/engine/engine_parts.h"

static struct engine_action *push(struct engine *e, enum engine_action_kind kind)
{
    assert(e->n_actions < e->cap_actions);
    struct engine_action *a = &e->actions[e->n_actions++];
    *a = (struct engine_action){.kind = kind};
    return a;
}

/* ---- sequences leave --------------------------------------------------------------------------- */

/* Free the slot. Those who left meanwhile give their blocks back only now. */
static void free_pass(struct engine *e, struct pass *p)
{
    for (uint32_t i = 0; i < p->n_parts; i++) {
        if (!p->parts[i].dead) continue;
        scheduler_release(&e->scheduler, p->parts[i].sequence);
        sequence_close(p->parts[i].sequence);
    }
    pass_clear(p);
    e->look = true;
}

static void drop_pass(struct engine *e, struct pass *p)
{
    dispatch_drop(e->dispatch, e->now_us, p->slot);
    free_pass(e, p);
}

void engine_leave(struct engine *e, struct sequence *q)
{
    e->look = true;
    sequence_map_remove(&e->sequences, q);
    bool in_pass = q->state == SEQUENCE_IN_PASS;
    scheduler_leave(&e->scheduler, q);
    if (!in_pass) {
        sequence_close(q);
        return;
    }
    struct pass *p = &e->passes[q->slot];
    struct pass_part *part = &p->parts[q->part];
    part->dead = true;
    p->n_live_parts--;
    for (uint32_t i = part->first; i < part->first + part->n; i++)
        p->rows[i].dead = true;
    if (p->state == PASS_COMPUTING)
        return; /* the job reads the rows: what is due is done when it ends */
    if (p->n_live_parts == 0)
        drop_pass(e, p);
    else
        dispatch_kill_rows(e->dispatch, e->now_us, p->slot, part->first, part->n);
}

static void finish(struct engine *e, struct sequence *q, enum engine_finish reason)
{
    struct engine_action *a = push(e, ENGINE_ACT_FINISH);
    a->finish.sequence = q->id;
    a->finish.reason = reason;
    engine_leave(e, q);
}

void engine_fail(struct engine *e, struct sequence *q, enum err_code code, const char *fmt, ...)
{
    assert(e->n_texts < e->max_sequences);
    char *text = e->texts[e->n_texts++];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, ENGINE_TEXT_MAX, fmt, args);
    va_end(args);
    struct engine_action *a = push(e, ENGINE_ACT_FINISH);
    a->finish.sequence = q->id;
    a->finish.reason = ENGINE_FINISH_FAILED;
    a->finish.code = code;
    a->finish.text = text;
    engine_leave(e, q);
}

static void fail_in_pass(struct engine *e, struct sequence *q, double waited_s)
{
    const struct pass *p = &e->passes[q->slot];
    const struct pass_part *part = &p->parts[q->part];
    uint32_t layer, expert, n_live;
    if (p->state == PASS_COMPUTING) {
        engine_fail(e, q, ERR_TIMEOUT,
                    "the deadline passed after %.1f s, while layers %d to %d were computed",
                    waited_s, p->job.first_layer, p->job.last_layer);
        return;
    }
    if (dispatch_find_unsent(e->dispatch, p->slot, part->first, part->n, &layer, &expert,
                             &n_live) ||
        dispatch_find_unsent(e->dispatch, p->slot, 0, p->n_rows, &layer, &expert, &n_live)) {
        if (n_live == 0)
            engine_fail(
                e, q, ERR_UNAVAILABLE,
                "no node holds expert %u of layer %u at the moment; the deadline passed after %.1f s",
                expert, layer, waited_s);
        else
            engine_fail(
                e, q, ERR_UNAVAILABLE,
                "expert %u of layer %u is refused by all nodes that hold it (%u); the deadline passed "
                "after %.1f s",
                expert, layer, n_live, waited_s);
        return;
    }
    const struct dispatch_step *s = dispatch_first_sent(e->dispatch, p->slot);
    if (s != NULL)
        engine_fail(
            e, q, ERR_TIMEOUT,
            "the deadline passed after %.1f s, while waiting for node %u to compute experts of layer %u",
            waited_s, s->node, s->layer);
    else
        engine_fail(
            e, q, ERR_TIMEOUT,
            "the deadline passed after %.1f s, while waiting behind the work of other requests",
            waited_s);
}

static void fail_late(struct engine *e, struct sequence *q)
{
    double waited_s = (double)(e->now_us - q->submit_us) / 1e6;
    if (q->state == SEQUENCE_IN_PASS)
        fail_in_pass(e, q, waited_s);
    else if (q->state == SEQUENCE_WAITING)
        engine_fail(e, q, ERR_TIMEOUT,
                    "the deadline passed after %.1f s, while waiting in the queue%s", waited_s,
                    q->was_preempted ? " for memory" : "");
    else if (q->paused)
        engine_fail(e, q, ERR_TIMEOUT,
                    "the deadline passed after %.1f s, while the reader was not reading", waited_s);
    else
        engine_fail(
            e, q, ERR_TIMEOUT,
            "the deadline passed after %.1f s, while waiting for a turn with %u of %u tokens computed",
            waited_s, q->n_kv, q->n_tokens);
}

static void check_deadlines(struct engine *e)
{
    if (e->now_us < e->deadline_us) return;
    e->deadline_us = UINT64_MAX;
    struct list *heads[] = {&e->scheduler.waiting, &e->scheduler.running};
    for (size_t h = 0; h < ARRAY_LEN(heads); h++)
        for (struct list *l = heads[h]->next, *next; l != heads[h]; l = next) {
            next = l->next;
            struct sequence *q = LIST_OBJECT(l, struct sequence, link);
            if (q->deadline_us <= e->now_us)
                fail_late(e, q);
            else if (q->deadline_us < e->deadline_us)
                e->deadline_us = q->deadline_us;
        }
}

/* ---- passes end -------------------------------------------------------------------------------- */

static bool is_eos(const struct engine *e, int32_t token)
{
    for (uint32_t i = 0; i < e->cfg.n_eos; i++)
        if (e->eos[i] == token) return true;
    return false;
}

static void emit(struct engine *e, const struct pass *p, uint32_t row, uint32_t logit_row,
                 bool is_prompt, uint32_t index, int32_t token)
{
    struct engine_action *a = push(e, ENGINE_ACT_EMIT);
    a->emit.sequence = p->rows[row].sequence;
    a->emit.slot = p->slot;
    a->emit.row = row;
    a->emit.logit_row = logit_row;
    a->emit.is_prompt = is_prompt;
    a->emit.index = index;
    a->emit.token = token;
}

/* One row that wanted logits; the sequence may end with it. */
static void take_token(struct engine *e, const struct pass *p, struct sequence *q, uint32_t row,
                       uint32_t logit_row, const struct engine_token *t)
{
    const struct engine_row *r = &p->rows[row];
    if (t->bad) {
        engine_fail(e, q, ERR_INTERNAL, "the logits of position %u are not finite", r->position);
        return;
    }
    if (q->prompt_logits && r->position < q->n_prompt && r->position == q->n_prompt_emitted) {
        bool is_last = r->position + 1 == q->n_prompt;
        emit(e, p, row, logit_row, true, r->position, is_last ? -1 : q->tokens[r->position + 1]);
        q->n_prompt_emitted++;
    }
    if (!r->samples) return;
    emit(e, p, row, logit_row, false, r->output_index, t->token);
    q->tokens[q->n_tokens++] = t->token;
    e->tokens_decoded++;
    if (!q->ignore_eos && is_eos(e, t->token))
        finish(e, q, ENGINE_FINISH_EOS);
    else if (sequence_n_output(q) == q->max_tokens)
        finish(e, q, ENGINE_FINISH_LENGTH);
}

static void end_pass(struct engine *e, struct pass *p, const struct engine_token *tokens)
{
    uint32_t logit_row = 0;
    for (uint32_t i = 0; i < p->n_parts; i++) {
        struct pass_part *part = &p->parts[i];
        struct sequence *q = part->sequence;
        if (!part->dead) q->n_kv += part->n;
        if (!part->dead && p->is_prefill) e->tokens_prefilled += part->n;
        for (uint32_t row = part->first; row < part->first + part->n; row++) {
            if (!p->rows[row].wants_logits) continue;
            if (!part->dead) take_token(e, p, q, row, logit_row, &tokens[logit_row]);
            logit_row++;
        }
        if (part->dead) continue;
        if (q->n_kv == q->n_tokens) { /* max_tokens 0: nothing was sampled */
            finish(e, q, ENGINE_FINISH_LENGTH);
            continue;
        }
        bool sampled = p->rows[part->first + part->n - 1].samples;
        bool crossed = sampled && p->rope_length > 0 && q->n_tokens == p->rope_length + 1;
        if (crossed) scheduler_release(&e->scheduler, q);
        q->state = sampled && !crossed ? SEQUENCE_READY : SEQUENCE_PREFILL;
    }
    free_pass(e, p);
}

/* ---- passes advance ---------------------------------------------------------------------------- */

static void next_job(struct engine *e, struct pass *p, int combine_layer)
{
    struct engine_job job;
    if (!pass_next_job(p, e->is_moe, combine_layer, &job)) {
        end_pass(e, p, NULL);
        return;
    }
    p->state = PASS_COMPUTING;
    push(e, ENGINE_ACT_COMPUTE)->compute = job;
}

void engine_computed(struct engine *e, struct pass *p, const struct engine_event *ev)
{
    const int *bad_layer = ev->computed.bad_layer;
    for (uint32_t i = 0; bad_layer != NULL && i < p->n_parts; i++) {
        struct pass_part *part = &p->parts[i];
        for (uint32_t row = part->first; row < part->first + part->n && !part->dead; row++) {
            if (bad_layer[row] >= 0)
                engine_fail(e, part->sequence, ERR_INTERNAL, "not finite at layer %d (position %u)",
                            bad_layer[row], p->rows[row].position);
        }
    }
    int last = p->job.last_layer;
    bool is_moe = p->job.first_layer <= last && e->is_moe[last];
    if (p->n_live_parts == 0) {
        drop_pass(e, p);
    } else if (is_moe) {
        pass_find_skips(p);
        dispatch_start(e->dispatch, e->now_us, p->slot, (uint32_t)last, ev->computed.experts,
                       p->skip, p->n_rows);
        p->state = PASS_WAITING_FOR_REPLIES;
    } else {
        end_pass(e, p, ev->computed.tokens);
    }
}

static void advance(struct engine *e, struct pass *p)
{
    if (p->state != PASS_WAITING_FOR_REPLIES && p->state != PASS_WAITING_FOR_EXPERTS) return;
    if (dispatch_n_open(e->dispatch, p->slot) > 0) {
        bool parked = dispatch_n_unsent(e->dispatch, p->slot) > 0;
        p->state = parked ? PASS_WAITING_FOR_EXPERTS : PASS_WAITING_FOR_REPLIES;
        return;
    }
    next_job(e, p, p->job.last_layer);
}

static void begin_passes(struct engine *e)
{
    if (!e->look) return;
    e->look = false;
    for (uint32_t i = 0; i < e->n_slots; i++)
        if (e->passes[i].state == PASS_FREE && scheduler_fill(&e->scheduler, &e->passes[i]))
            next_job(e, &e->passes[i], -1);
}

static void tell_sends(struct engine *e)
{
    while (dispatch_has_sends(e->dispatch)) {
        if (e->n_actions == e->cap_actions) {
            struct engine_action *more = mem_realloc(e->actions, 2 * e->cap_actions * sizeof *more);
            if (more == NULL)
                return; /* the rest is told after the next event; engine_next_timer_us says so */
            e->actions = more;
            e->cap_actions *= 2;
        }
        push(e, ENGINE_ACT_SEND)->send = dispatch_next_send(e->dispatch);
    }
}

void engine_progress(struct engine *e)
{
    dispatch_tick(e->dispatch, e->now_us);
    check_deadlines(e);
    for (uint32_t i = 0; i < e->n_slots; i++)
        advance(e, &e->passes[i]);
    begin_passes(e);
    tell_sends(e);
}
