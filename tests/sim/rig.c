#include "tests/sim/rig.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/rng.h"

/* Whose rows a pass has: "client 3: positions 0 to 17; client 5: position 40". Valid until the next call. */
static const char *parts_text(const struct rig *r, uint32_t slot)
{
    static char text[300];
    size_t at = 0;
    uint32_t n;
    const struct engine_row *rows = engine_rows(r->engine, slot, &n);
    text[0] = 0;
    for (uint32_t i = 0, end; i < n && at < sizeof text; i = end) {
        for (end = i + 1; end < n && rows[end].sequence == rows[i].sequence;)
            end++;
        at += (size_t)snprintf(text + at, sizeof text - at, "%sclient %llu: position%s %u",
                               i == 0 ? "" : "; ", (unsigned long long)rows[i].sequence,
                               end - i > 1 ? "s" : "", rows[i].position);
        if (end - i > 1 && at < sizeof text)
            at += (size_t)snprintf(text + at, sizeof text - at, " to %u", rows[end - 1].position);
        if (rows[i].dead && at < sizeof text)
            at += (size_t)snprintf(text + at, sizeof text - at, " (gone)");
    }
    return text;
}

/* Who waits for what, for whoever reads the trace of a failure. */
static void note_state(struct rig *r)
{
    if (r->trace == NULL || r->engine == NULL) return;
    buf_printf(r->trace, "At this moment:\n");
    for (uint32_t i = 0; i < r->n_clients; i++) {
        const struct rig_client *c = &r->clients[i];
        if (c->state == CLIENT_WAITING)
            buf_printf(r->trace,
                       "  client %llu waits, has %u of up to %u tokens, deadline %.3f ms%s\n",
                       (unsigned long long)c->id, c->n_told, c->max_tokens,
                       (double)c->deadline_us / 1000.0, c->paused ? ", does not read" : "");
    }
    for (uint32_t slot = 0; slot < r->cfg.decode_slots + r->cfg.prefill_slots; slot++) {
        uint32_t n, n_open = dispatch_n_open(engine_dispatch(r->engine), slot),
                    n_unsent = dispatch_n_unsent(engine_dispatch(r->engine), slot);
        engine_rows(r->engine, slot, &n);
        if (n == 0) continue;
        buf_printf(r->trace, "  slot %u: a pass of %s%s, %u results missing, %u of them unsent\n",
                   slot, parts_text(r, slot), r->has_job[slot] ? ", the coordinator computes" : "",
                   n_open, n_unsent);
    }
    if (r->n_wire == 0) buf_printf(r->trace, "  no step is on its way\n");
    for (uint32_t i = 0; i < r->n_wire; i++)
        buf_printf(r->trace, "  step %llu of slot %u is at node %u or on its way%s\n",
                   (unsigned long long)(r->wire[i]->step >> 20), r->wire[i]->slot, r->wire[i]->node,
                   engine_find_step(r->engine, r->wire[i]->step) == NULL ? ", not waited for" : "");
    for (uint32_t n = 0; n < r->cfg.dispatch.n_nodes; n++)
        buf_printf(r->trace, "  node %u: the decode stream %s, the bulk stream %s\n", n,
                   r->up[n][DISPATCH_DECODE] ? "stands" : "is gone",
                   r->up[n][DISPATCH_BULK] ? "stands" : "is gone");
}

void rig_fail(struct rig *r, const char *fmt, ...)
{
    if (r->wrong[0] != 0) return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(r->wrong, sizeof r->wrong, fmt, args);
    va_end(args);
    rig_note(r, "WRONG: %s", r->wrong);
    note_state(r);
}

void rig_note(struct rig *r, const char *fmt, ...)
{
    if (r->trace == NULL) return;
    char line[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    buf_printf(r->trace, "[%9.3f ms] %s\n", (double)r->now_us / 1000.0, line);
}

void rig_open(struct rig *r, const struct engine_cfg *cfg, struct placement *placement,
              uint64_t seed)
{
    struct engine_cfg c = *cfg;
    struct err why;
    c.placement = placement;
    c.eos = &r->eos;
    c.n_eos = r->eos >= 0;
    r->cfg = c;
    r->bad_row_layer = -1;
    r->placement = placement_acquire(placement);
    r->model = (struct fake_model){.seed = seed,
                                   .n_layers = c.n_layers,
                                   .n_experts = c.n_experts,
                                   .top_k = c.top_k,
                                   .n_kv_blocks = c.n_kv_blocks,
                                   .n_encoder_layers = c.n_encoder_layers,
                                   .rope_length = c.rope_length};
    memcpy(r->model.is_moe, c.is_moe, c.n_layers * sizeof *c.is_moe);
    fake_model_open(&r->model);
    for (uint32_t s = 0; s < c.decode_slots + c.prefill_slots; s++)
        fake_pass_open(&r->passes[s], &r->model, s < c.decode_slots ? c.max_decode_rows : c.chunk);
    if (engine_open(&c, &r->engine, &why) != ERR_OK) rig_fail(r, "open: %s", why.text);
}

static void free_message(struct rig *r, struct rig_message *m)
{
    for (uint32_t i = 0; i < r->n_wire; i++) {
        if (r->wire[i] != m) continue;
        memmove(&r->wire[i], &r->wire[i + 1], (r->n_wire - i - 1) * sizeof(struct rig_message *));
        r->n_wire--;
        break;
    }
    free(m->inputs);
    free(m->experts);
    free(m->expert_rows);
    free(m->row_index);
    free(m->slots);
    free(m->results);
    free(m);
}

void rig_close(struct rig *r)
{
    while (r->n_wire > 0)
        free_message(r, r->wire[r->n_wire - 1]);
    for (uint32_t i = 0; i < r->n_clients; i++) {
        free(r->clients[i].prompt);
        free(r->clients[i].truth);
    }
    for (uint32_t s = 0; s < r->cfg.decode_slots + r->cfg.prefill_slots; s++)
        fake_pass_close(&r->passes[s]);
    engine_close(r->engine);
    fake_model_close(&r->model);
    placement_release(r->placement);
}

/* ---- clients ----------------------------------------------------------------------------------- */

struct rig_client *rig_find(struct rig *r, uint64_t id)
{
    for (uint32_t i = 0; i < r->n_clients; i++)
        if (r->clients[i].id == id && r->clients[i].state == CLIENT_WAITING) return &r->clients[i];
    return NULL;
}

struct rig_client *rig_submit(struct rig *r, uint64_t id, uint32_t n_prompt, uint32_t max_tokens,
                              bool prompt_logits, uint64_t deadline_us, struct err *why)
{
    if (r->n_clients == RIG_MAX_CLIENTS) abort();
    struct rig_client *c = &r->clients[r->n_clients];
    *c = (struct rig_client){.id = id,
                             .n_prompt = n_prompt,
                             .max_tokens = max_tokens,
                             .prompt_logits = prompt_logits,
                             .submit_us = r->now_us,
                             .deadline_us = deadline_us};
    c->prompt = calloc(n_prompt + 1, sizeof *c->prompt);
    c->truth = calloc(max_tokens + 1, sizeof *c->truth);
    for (uint32_t i = 0; i < n_prompt; i++)
        c->prompt[i] = (int32_t)(rng_uniform(r->model.seed, i, (uint32_t)id) * FAKE_VOCAB);
    fake_model_truth(&r->model, c->prompt, n_prompt, c->truth, max_tokens);
    c->state = CLIENT_WAITING; /* before the step: what the engine tells must find it */
    r->n_clients++;
    struct engine_event ev = {.kind = ENGINE_SUBMIT};
    ev.submit.sequence = id;
    ev.submit.prompt = c->prompt;
    ev.submit.n_prompt = n_prompt;
    ev.submit.max_tokens = max_tokens;
    ev.submit.prompt_logits = prompt_logits;
    ev.submit.deadline_us = deadline_us;
    ev.now_us = r->now_us;
    rig_note(r, "client %llu brings a prompt of %u and asks for up to %u tokens by %.3f ms%s",
             (unsigned long long)id, n_prompt, max_tokens, (double)deadline_us / 1000.0,
             prompt_logits ? ", and for its prompt's logits" : "");
    enum err_code rc = rig_step(r, ev);
    if (rc == ERR_OK) return c;
    if (why != NULL) *why = r->refusal;
    r->n_clients--;
    free(c->prompt);
    free(c->truth);
    return NULL;
}

void rig_cancel(struct rig *r, uint64_t id)
{
    struct rig_client *c = rig_find(r, id);
    if (c != NULL) {
        c->state = CLIENT_CANCELLED;
        c->ended_us = r->now_us;
    }
    rig_note(r, "client %llu leaves", (unsigned long long)id);
    rig_step(r, (struct engine_event){.kind = ENGINE_CANCEL, .sequence = id});
}

void rig_pause(struct rig *r, uint64_t id, bool paused)
{
    struct rig_client *c = rig_find(r, id);
    if (c != NULL && c->paused != paused) {
        c->paused = paused;
        rig_note(r, "client %llu %s", (unsigned long long)id,
                 paused ? "stops reading" : "reads on");
    }
    rig_step(r,
             (struct engine_event){.kind = paused ? ENGINE_PAUSE : ENGINE_RESUME, .sequence = id});
}

static void check_emit(struct rig *r, const struct engine_action *a)
{
    struct rig_client *c = rig_find(r, a->emit.sequence);
    unsigned long long id = a->emit.sequence;
    if (c == NULL) {
        rig_fail(r, "token for client %llu, which is not waiting", id);
        return;
    }
    r->told_us = r->now_us;
    const struct fake_pass *p = &r->passes[a->emit.slot];
    if (a->emit.logit_row >= p->n_logit_rows || p->logit_rows[a->emit.logit_row] != a->emit.row)
        rig_fail(r, "token for client %llu: logit row %u is not that of row %u", id,
                 a->emit.logit_row, a->emit.row);
    if (p->rows[a->emit.row].sequence != id)
        rig_fail(r, "token for client %llu: row %u is another's", id, a->emit.row);
    if (a->emit.is_prompt) {
        bool last = a->emit.index + 1 == c->n_prompt;
        if (!c->prompt_logits || a->emit.index != c->n_prompt_told ||
            a->emit.index >= c->n_prompt || c->n_told > 0)
            rig_fail(r, "token for client %llu: prompt row %u after %u", id, a->emit.index,
                     c->n_prompt_told);
        else if (a->emit.token != (last ? -1 : c->prompt[a->emit.index + 1]))
            rig_fail(r, "token for client %llu: prompt row %u has token %d", id, a->emit.index,
                     a->emit.token);
        c->n_prompt_told++;
        return;
    }
    rig_note(r, "  client %llu gets token %u: %d", id, a->emit.index, a->emit.token);
    if (a->emit.index != c->n_told || c->n_told >= c->max_tokens)
        rig_fail(r, "token for client %llu: token %u after %u of %u", id, a->emit.index, c->n_told,
                 c->max_tokens);
    else if (a->emit.token != c->truth[c->n_told])
        rig_fail(r, "token for client %llu: token %u is %d, the model says %d", id, a->emit.index,
                 a->emit.token, c->truth[c->n_told]);
    if (c->prompt_logits && c->n_prompt_told != c->n_prompt)
        rig_fail(r, "token for client %llu: a token after %u of %u prompt rows", id,
                 c->n_prompt_told, c->n_prompt);
    c->n_told++;
}

static void check_finish(struct rig *r, const struct engine_action *a)
{
    struct rig_client *c = rig_find(r, a->finish.sequence);
    unsigned long long id = a->finish.sequence;
    if (c == NULL) {
        rig_fail(r, "the end for client %llu, which is not waiting", id);
        return;
    }
    c->ended_us = r->told_us = r->now_us;
    c->reason = a->finish.reason;
    c->state = a->finish.reason == ENGINE_FINISH_FAILED ? CLIENT_FAILED : CLIENT_DONE;
    bool at_eos = c->n_told > 0 && r->eos >= 0 && c->truth[c->n_told - 1] == r->eos;
    switch (a->finish.reason) {
    case ENGINE_FINISH_EOS:
        if (!at_eos) rig_fail(r, "client %llu is ended by a token that ends nothing", id);
        break;
    case ENGINE_FINISH_LENGTH:
        if (c->n_told != c->max_tokens || at_eos)
            rig_fail(r, "client %llu is ended with %u of %u tokens", id, c->n_told, c->max_tokens);
        if (c->prompt_logits && c->n_prompt_told != c->n_prompt)
            rig_fail(r, "client %llu is ended with %u of %u prompt rows", id, c->n_prompt_told,
                     c->n_prompt);
        break;
    case ENGINE_FINISH_FAILED:
        c->code = a->finish.code;
        snprintf(c->text, sizeof c->text, "%s", a->finish.text);
        break;
    }
    if (c->state == CLIENT_FAILED)
        rig_note(r, "  client %llu is told an error: %s", id, c->text);
    else
        rig_note(r, "  client %llu is done: %s", id,
                 a->finish.reason == ENGINE_FINISH_EOS ? "the model ends its text"
                                                       : "it has all the tokens it asked for");
    if (c->state == CLIENT_FAILED && r->time_enough)
        rig_fail(r, "client %llu failed though there was time: %s", id, c->text);
}

/* ---- nodes ------------------------------------------------------------------------------------- */

/* Work of which nothing is wanted any more. */
static void check_wanted(struct rig *r, uint32_t slot, const uint32_t *chosen, uint32_t n_chosen)
{
    uint32_t n;
    const struct engine_row *rows = engine_rows(r->engine, slot, &n);
    for (uint32_t i = 0; i < (chosen == NULL ? n : n_chosen); i++)
        if (!rows[chosen == NULL ? i : chosen[i]].dead) return;
    rig_fail(r, "slot %u: a %s whose rows are all of clients that have left", slot,
             chosen == NULL ? "job" : "step");
}

/* Everything dispatch.h promises of a step. */
static void check_step(struct rig *r, const struct dispatch_step *s)
{
    const struct fake_pass *p = &r->passes[s->slot];
    uint32_t entry = 0;
    if (engine_find_step(r->engine, s->id) != s)
        rig_fail(r, "step %llu is not found", (unsigned long long)s->id);
    if (!r->up[s->node][s->lane])
        rig_fail(r, "step for node %u, whose lane %d is down", s->node, (int)s->lane);
    if (s->lane != (s->slot < r->cfg.decode_slots ? DISPATCH_DECODE : DISPATCH_BULK))
        rig_fail(r, "slot %u uses lane %d", s->slot, (int)s->lane);
    for (uint32_t i = 0; i < s->n_rows; i++)
        if (s->rows[i] >= p->n_rows || (i > 0 && s->rows[i] <= s->rows[i - 1]))
            rig_fail(r, "rows of a step do not ascend");
    for (uint32_t e = 0; e < s->n_experts; e++) {
        if (e > 0 && s->experts[e] <= s->experts[e - 1])
            rig_fail(r, "experts of a step do not ascend");
        for (uint32_t i = 0; i < s->expert_rows[e]; i++, entry++) {
            uint32_t row =
                s->row_index[entry] < s->n_rows ? s->rows[s->row_index[entry]] : UINT32_MAX;
            if (s->result_slot[entry] / r->cfg.top_k != row)
                rig_fail(r, "an entry names another row");
            else if (p->experts[s->result_slot[entry]] != s->experts[e])
                rig_fail(r, "an entry names another expert");
            if (i > 0 && s->row_index[entry] <= s->row_index[entry - 1])
                rig_fail(r, "rows of an expert do not ascend");
        }
    }
    if (entry != s->n_entries || entry == 0)
        rig_fail(r, "a step of %u entries has %u", s->n_entries, entry);
    const struct dispatch_cfg *d = &r->cfg.dispatch;
    if (s->lane == DISPATCH_BULK &&
        ((s->n_rows > 1 && s->n_rows * d->row_bytes > d->piece_bytes) ||
         (s->n_entries > 1 && s->n_entries * d->result_bytes > d->piece_bytes)))
        rig_fail(r, "a piece of %u rows and %u results is larger than %u bytes", s->n_rows,
                 s->n_entries, d->piece_bytes);
}

static void send(struct rig *r, const struct dispatch_step *s)
{
    check_step(r, s);
    if (r->wrong[0] == 0) check_wanted(r, s->slot, s->rows, s->n_rows);
    if (r->wrong[0] != 0) return;
    if (r->n_wire == RIG_MAX_WIRE) abort();
    struct rig_message *m = calloc(1, sizeof *m);
    *m = (struct rig_message){.step = s->id,
                              .node = s->node,
                              .slot = s->slot,
                              .layer = s->layer,
                              .piece = s->piece,
                              .lane = s->lane,
                              .n_rows = s->n_rows,
                              .n_experts = s->n_experts,
                              .n_entries = s->n_entries,
                              .is_replay = s->is_replay,
                              .born = r->now_us};
    m->inputs = malloc(s->n_rows * sizeof *m->inputs);
    m->experts = malloc(s->n_experts * sizeof *m->experts);
    m->expert_rows = malloc(s->n_experts * sizeof *m->expert_rows);
    m->row_index = malloc(s->n_entries * sizeof *m->row_index);
    m->slots = malloc(s->n_entries * sizeof *m->slots);
    m->results = malloc(s->n_entries * sizeof *m->results);
    memcpy(m->slots, s->result_slot, s->n_entries * sizeof *m->slots);
    for (uint32_t i = 0; i < s->n_rows; i++)
        m->inputs[i] = r->passes[s->slot].hidden[s->rows[i]];
    for (uint32_t i = 0; i < s->n_experts; i++) {
        m->experts[i] = s->experts[i];
        m->expert_rows[i] = s->expert_rows[i];
    }
    for (uint32_t i = 0; i < s->n_entries; i++) {
        uint32_t slot = s->result_slot[i];
        uint16_t expert = r->passes[s->slot].experts[slot];
        m->row_index[i] = s->row_index[i];
        m->results[i] = fake_expert(&r->model, s->layer, expert,
                                    r->passes[s->slot].hidden[slot / r->cfg.top_k]);
    }
    r->wire[r->n_wire++] = m;
    uint32_t bulk = 0;
    for (uint32_t i = 0; i < r->n_wire; i++)
        bulk += r->wire[i]->lane == DISPATCH_BULK && r->wire[i]->node == s->node &&
                engine_find_step(r->engine, r->wire[i]->step) != NULL;
    if (bulk > r->most_bulk) r->most_bulk = bulk;
    rig_note(r, "  slot %u layer %u: step %llu goes to node %u, %u row%s, %u result%s%s", s->slot,
             s->layer, (unsigned long long)(s->id >> 20), s->node, s->n_rows,
             s->n_rows == 1 ? "" : "s", s->n_entries, s->n_entries == 1 ? "" : "s",
             s->is_replay ? ", asked again" : "");
    if (r->on_message != NULL) r->on_message(r->ctx, m);
}

/* ---- events ------------------------------------------------------------------------------------ */

/* First come, first served. */
static void check_turn(struct rig *r, struct rig_client *c)
{
    for (const struct rig_client *o = r->clients; o != c && !c->begun; o++)
        if (o->state == CLIENT_WAITING && !o->begun)
            rig_fail(r, "client %llu begins before client %llu, which came earlier",
                     (unsigned long long)c->id, (unsigned long long)o->id);
    c->begun = true;
}

/* Rows that begin: of whom, and that no prompt logits are computed twice. */
static void check_begin(struct rig *r, uint32_t slot)
{
    uint32_t n;
    const struct engine_row *rows = engine_rows(r->engine, slot, &n);
    for (uint32_t i = 0; i < n; i++) {
        struct rig_client *c = rig_find(r, rows[i].sequence);
        if (c == NULL || rows[i].dead)
            rig_fail(r, "row %u of slot %u begins for nobody", i, slot);
        else if (rows[i].wants_logits && !rows[i].samples && rows[i].position < c->n_prompt_told)
            rig_fail(r, "logits of position %u are computed again", rows[i].position);
        if (c != NULL) check_turn(r, c);
        if (i > 0 && rows[i].sequence == rows[i - 1].sequence &&
            rows[i].position != rows[i - 1].position + 1)
            rig_fail(r, "positions of a sequence do not ascend");
    }
}

static void check_bounds(struct rig *r)
{
    struct engine_stats st;
    engine_stats(r->engine, &st);
    if (st.running > r->cfg.max_running || st.waiting > r->cfg.max_waiting + r->cfg.max_running)
        rig_fail(r, "%u running and %u waiting, allowed are %u and %u", st.running, st.waiting,
                 r->cfg.max_running, r->cfg.max_waiting);
}

static void note_job(struct rig *r, const struct engine_job *job)
{
    char combine[48] = "";
    if (job->combine_layer >= 0)
        snprintf(combine, sizeof combine, " with the results of layer %d", job->combine_layer);
    if (r->trace == NULL) return;
    if (job->begin)
        rig_note(r, "  slot %u begins a pass of %s", job->slot, parts_text(r, job->slot));
    if (job->first_layer == job->last_layer)
        rig_note(r, "  slot %u computes layer %d%s%s", job->slot, job->first_layer, combine,
                 job->head ? ", then the head" : "");
    else if (job->first_layer < job->last_layer)
        rig_note(r, "  slot %u computes layers %d to %d%s%s", job->slot, job->first_layer,
                 job->last_layer, combine, job->head ? ", then the head" : "");
    else
        rig_note(r, "  slot %u computes the head%s", job->slot, combine);
}

enum err_code rig_step(struct rig *r, struct engine_event ev)
{
    struct engine_actions todo = {0};
    struct err why = {.code = ERR_OK};
    if (r->wrong[0] != 0) return ERR_INTERNAL;
    ev.now_us = r->now_us;
    if (r->starve_memory) mem_fail_at(1);
    enum err_code rc = engine_step(r->engine, &ev, &todo, &why);
    mem_fail_at(0);
    if (rc != ERR_OK) {
        r->refusal = why;
        rig_note(r, "  the engine refuses: %s", why.text);
    }
    if (rc != ERR_OK && todo.n > 0) rig_fail(r, "an event that was not taken has actions");
    if (rc != ERR_OK && ev.kind != ENGINE_SUBMIT && !r->starve_memory)
        rig_fail(r, "event refused: %s", why.text);
    for (size_t i = 0; i < todo.n && r->wrong[0] == 0; i++) {
        const struct engine_action *a = &todo.items[i];
        switch (a->kind) {
        case ENGINE_ACT_COMPUTE:
            if (r->has_job[a->compute.slot])
                rig_fail(r, "slot %u computes two things", a->compute.slot);
            r->has_job[a->compute.slot] = true;
            r->job[a->compute.slot] = a->compute;
            if (a->compute.begin) check_begin(r, a->compute.slot);
            note_job(r, &a->compute);
            check_wanted(r, a->compute.slot, NULL, 0);
            if (r->on_job != NULL) r->on_job(r->ctx, a->compute.slot);
            break;
        case ENGINE_ACT_SEND:
            send(r, a->send);
            break;
        case ENGINE_ACT_EMIT:
            check_emit(r, a);
            break;
        case ENGINE_ACT_FINISH:
            check_finish(r, a);
            break;
        }
    }
    check_bounds(r);
    return rc;
}

void rig_compute(struct rig *r, uint32_t slot)
{
    struct fake_pass *p = &r->passes[slot];
    if (!r->has_job[slot]) {
        rig_fail(r, "the test wants a job of slot %u, which has none", slot);
        return;
    }
    r->has_job[slot] = false;
    uint32_t n;
    const struct engine_row *rows = engine_rows(r->engine, slot, &n);
    const char *wrong = fake_model_run(&r->model, p, &r->job[slot], rows, n);
    if (wrong != NULL) {
        rig_fail(r, "slot %u: %s", slot, wrong);
        return;
    }
    if (r->bad_row_layer >= r->job[slot].first_layer && r->bad_row_layer <= r->job[slot].last_layer)
        for (uint32_t i = 0; i < n; i++)
            if (!rows[i].dead) {
                p->bad_layer[i] = r->bad_row_layer;
                r->bad_row_layer = -1;
                break;
            }
    rig_note(r, "the coordinator has computed slot %u", slot);
    struct engine_event ev = {.kind = ENGINE_COMPUTED};
    ev.computed.slot = slot;
    ev.computed.experts = p->experts;
    ev.computed.bad_layer = p->bad_layer;
    ev.computed.tokens = p->tokens;
    if (rig_step(r, ev) != ERR_OK && r->wrong[0] == 0) rig_fail(r, "a result was refused");
}

void rig_answer(struct rig *r, struct rig_message *m)
{
    struct fake_pass *p = &r->passes[m->slot];
    bool known = engine_find_step(r->engine, m->step) != NULL;
    rig_note(r, "the answer of node %u to step %llu arrives%s", m->node,
             (unsigned long long)(m->step >> 20), known ? "" : ", too late");
    for (uint32_t i = 0; known && i < m->n_entries; i++) {
        p->results[m->slots[i]] = m->results[i];
        p->written[m->slots[i]]++;
    }
    struct engine_event ev = {.kind = ENGINE_REPLY};
    ev.reply.step = m->step;
    free_message(r, m);
    rig_step(r, ev);
}

void rig_answer_again(struct rig *r, uint64_t step)
{
    rig_note(r, "step %llu is answered once more", (unsigned long long)(step >> 20));
    if (engine_find_step(r->engine, step) != NULL)
        rig_fail(r, "a step that was answered is still open");
    struct engine_event ev = {.kind = ENGINE_REPLY};
    ev.reply.step = step;
    rig_step(r, ev);
}

void rig_refuse(struct rig *r, struct rig_message *m)
{
    rig_note(r, "the refusal by node %u of step %llu arrives", m->node,
             (unsigned long long)(m->step >> 20));
    struct engine_event ev = {.kind = ENGINE_STEP_FAILED};
    ev.reply.step = m->step;
    ev.reply.why = "not now";
    free_message(r, m);
    rig_step(r, ev);
}

void rig_lose(struct rig *r, struct rig_message *m)
{
    free_message(r, m);
}

void rig_node(struct rig *r, uint32_t node, enum dispatch_lane lane, bool up)
{
    if (!up)
        for (uint32_t i = r->n_wire; i > 0; i--)
            if (r->wire[i - 1]->node == node && r->wire[i - 1]->lane == lane)
                free_message(r, r->wire[i - 1]);
    r->up[node][lane] = up;
    rig_note(r, "the %s stream to node %u %s", lane == DISPATCH_DECODE ? "decode" : "bulk", node,
             up ? "stands" : "is gone");
    struct engine_event ev = {.kind = up ? ENGINE_NODE_UP : ENGINE_NODE_DOWN};
    ev.node.node = node;
    ev.node.lane = lane;
    rig_step(r, ev);
}

void rig_place(struct rig *r, struct placement *p)
{
    placement_acquire(p);
    placement_release(r->placement);
    r->placement = p;
    rig_note(r, "the coordinator knows who holds what: placement %llu",
             (unsigned long long)placement_epoch(p));
    rig_step(r, (struct engine_event){.kind = ENGINE_PLACEMENT, .placement = p});
}

void rig_tick(struct rig *r, uint64_t now_us)
{
    r->now_us = now_us;
    rig_step(r, (struct engine_event){.kind = ENGINE_TICK});
}

uint32_t rig_run(struct rig *r, uint32_t n)
{
    uint32_t done = 0;
    while (done < n && r->wrong[0] == 0) {
        uint32_t slot = 0;
        while (slot < RIG_MAX_SLOTS && !r->has_job[slot])
            slot++;
        r->now_us += 10;
        if (slot < RIG_MAX_SLOTS)
            rig_compute(r, slot);
        else if (r->n_wire > 0)
            rig_answer(r, r->wire[0]);
        else
            break;
        done++;
    }
    return done;
}
