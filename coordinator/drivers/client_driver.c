#include "coordinator/drivers/client_driver.h"

#include <pthread.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/sys/mailbox.h"

#define REASON_MAX 512

struct order_mail {
    struct mail mail;
    struct client_order order;
    struct generation_spec spec;
    int32_t *prompt;
    struct logit_bias *bias;
    struct token_mail *last; /* SUBMIT: for the sequence's last event */
};

/* Loop side of one sequence. What must not fail later is made ready when it begins. */
struct entry {
    bool used;
    uint32_t generation;
    uint32_t next_free;
    generation_sink sink;
    void *ctx;
    struct order_mail *cancel;
    struct order_mail *resume; /* while it is paused */
};

struct token_mail {
    struct mail mail;
    uint64_t sequence;
    struct generation_event event;
    struct err why;
    bool is_cluster;
    char *json;
};

struct cluster_wait {
    struct cluster_wait *next;
    void (*done)(void *, const char *);
    void *ctx;
};

struct client_driver {
    uv_async_t async;
    void (*wake)(void *);
    void *wake_ctx;
    struct mailbox to_engine, to_loop;

    /* loop thread */
    struct entry entries[CLIENT_MAX_SEQUENCES];
    uint32_t first_free, active;
    struct cluster_wait *waits;
    bool asked;
    struct token_mail cluster_mail; /* one question is under way at most */
    void (*closed)(void *);
    void *closed_ctx;

    /* engine thread */
    struct {
        bool used;
        uint64_t name;
        struct client_sequence facts;
        struct logit_bias *bias; /* that of facts */
        struct token_mail
            *last; /* while `used`: room for the last event, whatever memory there is then */
    } sequences[CLIENT_MAX_SEQUENCES];

    pthread_mutex_t lock; /* ready, accepting, reason */
    bool ready, accepting;
    char reason[REASON_MAX], shown[REASON_MAX];
};

static uint32_t index_of(uint64_t handle)
{
    return (uint32_t)handle % CLIENT_MAX_SEQUENCES;
}

static struct entry *find(struct client_driver *c, uint64_t handle)
{
    struct entry *e = &c->entries[index_of(handle)];
    return e->used && e->generation == (uint32_t)(handle >> 32) ? e : NULL;
}

static void free_order(struct order_mail *o)
{
    if (o == NULL) return;
    mem_free(o->prompt);
    mem_free(o->bias);
    mem_free(o->last);
    mem_free(o);
}

static void free_entry(struct client_driver *c, struct entry *e)
{
    e->used = false;
    free_order(e->cancel);
    free_order(e->resume);
    e->cancel = e->resume = NULL;
    e->next_free = c->first_free;
    c->first_free = (uint32_t)(e - c->entries);
    c->active--;
}

static void answer_waits(struct client_driver *c, const char *json)
{
    struct cluster_wait *w = c->waits;
    c->waits = NULL;
    c->asked = false;
    while (w != NULL) {
        struct cluster_wait *next = w->next;
        w->done(w->ctx, json);
        mem_free(w);
        w = next;
    }
}

static void on_async(uv_async_t *handle)
{
    struct client_driver *c = handle->data;
    for (struct mail *m = mailbox_take_all(&c->to_loop), *next; m != NULL; m = next) {
        next = m->next;
        struct token_mail *t = (struct token_mail *)m;
        if (t->is_cluster) {
            char *json = t->json;
            t->json = NULL;
            answer_waits(c, json != NULL ? json : "{}");
            mem_free(json);
            continue;
        }
        struct entry *e = find(c, t->sequence);
        if (e != NULL) {
            generation_sink sink = e->sink;
            void *ctx = e->ctx;
            if (t->event.kind == GENERATION_FAILED) t->event.error = &t->why;
            if (t->event.kind >= GENERATION_FINISHED) free_entry(c, e);
            sink(ctx, &t->event);
        }
        mem_free(t);
    }
}

enum err_code client_driver_open(uv_loop_t *loop, void (*wake)(void *ctx), void *wake_ctx,
                                 struct client_driver **out, struct err *why)
{
    struct client_driver *c = mem_zalloc(sizeof *c);
    if (c == NULL) return err_nomem(why, "client driver");
    c->wake = wake;
    c->wake_ctx = wake_ctx;
    mailbox_init(&c->to_engine);
    mailbox_init(&c->to_loop);
    pthread_mutex_init(&c->lock, NULL);
    for (uint32_t i = 0; i < CLIENT_MAX_SEQUENCES; i++)
        c->entries[i].next_free = i + 1;
    int e = uv_async_init(loop, &c->async, on_async);
    if (e != 0) {
        mem_free(c);
        return err_set(why, ERR_IO, "client driver: %s", uv_strerror(e));
    }
    c->async.data = c;
    *out = c;
    return ERR_OK;
}

static void on_closed(uv_handle_t *h)
{
    struct client_driver *c = h->data;
    for (struct mail *m = mailbox_take_all(&c->to_engine), *next; m != NULL; m = next) {
        next = m->next;
        free_order((struct order_mail *)m);
    }
    for (struct mail *m = mailbox_take_all(&c->to_loop), *next; m != NULL; m = next) {
        next = m->next;
        struct token_mail *t = (struct token_mail *)m;
        mem_free(t->json);
        if (!t->is_cluster) mem_free(t);
    }
    answer_waits(c, "{}");
    for (uint32_t i = 0; i < CLIENT_MAX_SEQUENCES; i++) {
        free_order(c->entries[i].cancel);
        free_order(c->entries[i].resume);
        mem_free(c->sequences[i].last);
        mem_free(c->sequences[i].bias);
    }
    mailbox_deinit(&c->to_engine);
    mailbox_deinit(&c->to_loop);
    pthread_mutex_destroy(&c->lock);
    void (*closed)(void *) = c->closed;
    void *ctx = c->closed_ctx;
    mem_free(c);
    if (closed != NULL) closed(ctx);
}

void client_driver_close(struct client_driver *c, void (*done)(void *ctx), void *ctx)
{
    c->closed = done;
    c->closed_ctx = ctx;
    uv_close((uv_handle_t *)&c->async, on_closed);
}

/* ---- loop thread ------------------------------------------------------------------------------ */

static void post_order(struct client_driver *c, struct order_mail *o)
{
    if (mailbox_post(&c->to_engine, &o->mail)) c->wake(c->wake_ctx);
}

static enum err_code service_start(void *self, const struct generation_spec *spec,
                                   generation_sink sink, void *ctx, uint64_t *handle,
                                   struct err *why)
{
    struct client_driver *c = self;
    pthread_mutex_lock(&c->lock);
    bool accepting = c->accepting;
    char reason[REASON_MAX];
    memcpy(reason, c->reason, sizeof reason);
    pthread_mutex_unlock(&c->lock);
    if (!accepting)
        return err_set(why, ERR_UNAVAILABLE, "%s", reason[0] ? reason : "the model is loading");
    if (c->first_free == CLIENT_MAX_SEQUENCES)
        return err_set(why, ERR_EXHAUSTED, "%u sequences are under way, the limit; try again later",
                       c->active);
    struct order_mail *o = mem_zalloc(sizeof *o), *cancel = mem_zalloc(sizeof *cancel);
    if (o != NULL) {
        o->prompt = mem_zalloc_array(spec->n_prompt, sizeof *o->prompt);
        o->bias = mem_zalloc_array(spec->sampling.adjust.n_bias, sizeof *o->bias);
        o->last = mem_zalloc(sizeof *o->last);
    }
    if (o == NULL || cancel == NULL || o->prompt == NULL || o->bias == NULL || o->last == NULL) {
        free_order(o);
        free_order(cancel);
        return err_nomem(why, "a request");
    }
    memcpy(o->prompt, spec->prompt, spec->n_prompt * sizeof *o->prompt);
    struct entry *e = &c->entries[c->first_free];
    c->first_free = e->next_free;
    c->active++;
    e->used = true;
    e->generation++;
    e->sink = sink;
    e->ctx = ctx;
    e->cancel = cancel;
    *handle = (uint64_t)e->generation << 32 | (uint64_t)(e - c->entries);
    cancel->order = (struct client_order){.kind = CLIENT_CANCEL, .sequence = *handle};
    o->spec = *spec;
    o->spec.prompt = o->prompt;
    if (spec->sampling.adjust.n_bias > 0)
        memcpy(o->bias, spec->sampling.adjust.bias, spec->sampling.adjust.n_bias * sizeof *o->bias);
    o->spec.sampling.adjust.bias = o->bias;
    o->order = (struct client_order){CLIENT_SUBMIT, *handle, &o->spec, clock_now_us()};
    post_order(c, o);
    return ERR_OK;
}

static void service_cancel(void *self, uint64_t handle)
{
    struct client_driver *c = self;
    struct entry *e = find(c, handle);
    if (e == NULL) return;
    struct order_mail *o = e->cancel;
    e->cancel = NULL;
    free_entry(c, e);
    post_order(c, o);
}

static struct order_mail *make_order(enum client_order_kind kind, uint64_t sequence)
{
    struct order_mail *o = mem_zalloc(sizeof *o);
    if (o != NULL) o->order = (struct client_order){.kind = kind, .sequence = sequence};
    return o;
}

static void service_pause(void *self, uint64_t handle, bool paused)
{
    struct client_driver *c = self;
    struct entry *e = find(c, handle);
    if (e == NULL || paused == (e->resume != NULL)) return;
    struct order_mail *o = e->resume;
    e->resume = NULL;
    if (paused) {
        /* Without memory for both orders it is not paused: tokens that come all the same are the lesser evil. */
        e->resume = make_order(CLIENT_RESUME, handle);
        o = e->resume != NULL ? make_order(CLIENT_PAUSE, handle) : NULL;
        if (o == NULL) {
            free_order(e->resume);
            e->resume = NULL;
            return;
        }
    }
    post_order(c, o);
}

static void service_cluster(void *self, void (*done)(void *ctx, const char *json), void *ctx)
{
    struct client_driver *c = self;
    struct cluster_wait *w = mem_zalloc(sizeof *w);
    struct order_mail *o = w != NULL && !c->asked ? make_order(CLIENT_CLUSTER, 0) : NULL;
    if (w == NULL || (!c->asked && o == NULL)) {
        mem_free(w);
        done(ctx, "{}");
        return;
    }
    *w = (struct cluster_wait){c->waits, done, ctx};
    c->waits = w;
    if (o == NULL) return;
    c->asked = true;
    post_order(c, o);
}

static bool service_ready(void *self, const char **reason)
{
    struct client_driver *c = self;
    pthread_mutex_lock(&c->lock);
    bool ready = c->ready;
    memcpy(c->shown, c->reason, sizeof c->shown);
    pthread_mutex_unlock(&c->lock);
    if (reason != NULL) *reason = ready ? "" : c->shown[0] ? c->shown : "the model is loading";
    return ready;
}

void client_driver_service(struct client_driver *c, struct generation_service *out)
{
    *out = (struct generation_service){
        c, service_start, service_cancel, service_pause, service_cluster, service_ready};
}

uint32_t client_driver_active(const struct client_driver *c)
{
    return c->active;
}

/* ---- engine thread ---------------------------------------------------------------------------- */

static void end_sequence(struct client_driver *c, uint32_t i)
{
    c->sequences[i].used = false;
    mem_free(c->sequences[i].last);
    mem_free(c->sequences[i].bias);
    c->sequences[i].last = NULL;
    c->sequences[i].bias = NULL;
}

unsigned client_driver_orders(struct client_driver *c,
                              void (*take)(void *ctx, const struct client_order *o), void *ctx)
{
    unsigned n = 0;
    for (struct mail *m = mailbox_take_all(&c->to_engine), *next; m != NULL; m = next, n++) {
        next = m->next;
        struct order_mail *o = (struct order_mail *)m;
        uint32_t i = index_of(o->order.sequence);
        if (o->order.kind == CLIENT_SUBMIT) {
            end_sequence(c, i);
            c->sequences[i].used = true;
            c->sequences[i].name = o->order.sequence;
            c->sequences[i].facts = (struct client_sequence){
                o->spec.sampling, o->spec.top_logprobs, o->spec.logprobs, o->spec.prompt_logprobs};
            c->sequences[i].last = o->last;
            c->sequences[i].bias = o->bias;
            o->last = NULL;
            o->bias = NULL;
        }
        take(ctx, &o->order);
        if (o->order.kind == CLIENT_CANCEL && c->sequences[i].name == o->order.sequence)
            end_sequence(c, i);
        free_order(o);
    }
    return n;
}

const struct client_sequence *client_driver_find(const struct client_driver *c, uint64_t sequence)
{
    uint32_t i = index_of(sequence);
    return c->sequences[i].used && c->sequences[i].name == sequence ? &c->sequences[i].facts : NULL;
}

static void post_token(struct client_driver *c, struct token_mail *t)
{
    if (mailbox_post(&c->to_loop, &t->mail)) uv_async_send(&c->async);
}

void client_driver_post(struct client_driver *c, uint64_t sequence,
                        const struct generation_event *ev, const struct err *why)
{
    if (client_driver_find(c, sequence) == NULL) return; /* it has ended, or nobody listens */
    uint32_t i = index_of(sequence);
    bool is_last = ev->kind >= GENERATION_FINISHED;
    struct token_mail *t = is_last ? NULL : mem_zalloc(sizeof *t);
    if (t == NULL) {
        t = c->sequences[i].last;
        c->sequences[i].last = NULL;
    }
    t->sequence = sequence;
    t->event = *ev;
    if (why != NULL) t->why = *why;
    if (!is_last && c->sequences[i].last == NULL) {
        /* A token that is lost would make the answer wrong: it ends here, in the room that was kept for that. What the
         * engine still computes of it is dropped above. */
        t->event = (struct generation_event){.kind = GENERATION_FAILED};
        err_nomem(&t->why, "the tokens of an answer");
        is_last = true;
    }
    if (is_last) end_sequence(c, i);
    post_token(c, t);
}

void client_driver_answer_cluster(struct client_driver *c, char *json)
{
    struct token_mail *t = &c->cluster_mail;
    t->is_cluster = true;
    t->json = json;
    post_token(c, t);
}

void client_driver_set_ready(struct client_driver *c, bool ready, bool accepting,
                             const char *reason)
{
    pthread_mutex_lock(&c->lock);
    c->ready = ready;
    c->accepting = accepting;
    strncpy(c->reason, reason != NULL ? reason : "", sizeof c->reason - 1);
    pthread_mutex_unlock(&c->lock);
}
