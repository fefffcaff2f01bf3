/* The queue: process-wide settings, polling, timers, wake-ups. */
#include "common/rpc/rpc.h"

#include <assert.h>
#include <dlfcn.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <malloc.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/rpc/internal.h"

#define EVENTS_PER_POLL 256u /* then the caller gets a turn */

/* ---- once per process ------------------------------------------------------------------------- */

static void log_from_grpc(gpr_log_func_args *args)
{
    /* gRPC's errors are things that it coped with: nobody has to act on "connection refused". */
    if (args->severity == GPR_LOG_SEVERITY_ERROR)
        log_warn("grpc", "msg=\"%s\"", args->message);
    else
        log_debug("grpc", "msg=\"%s\"", args->message);
}

static void set_process_switches(void)
{
    /* gRPC reads into fresh 64 KiB slices and frees them after use; with glibc's defaults the top of the heap
     * goes back to the kernel each time and every message faults its pages in again (1 MiB: 785 -> 591 us). */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_TOP_PAD, 64 << 20);
    mallopt(M_MMAP_THRESHOLD, 1 << 30);

    /* Debian builds abseil with its deadlock detector on, which walks a global graph at every lock: 42 % of a
     * polling client's samples. There is no C face to switch it off; without the symbol it just stays on. */
    void *symbol = dlsym(RTLD_DEFAULT,
                         "_ZN4absl7debian329SetMutexDeadlockDetectionModeENS0_15OnDeadlockCycleE");
    if (symbol != NULL) {
        void (*set_mode)(int);
        _Static_assert(sizeof set_mode == sizeof symbol, "POSIX: functions fit in object pointers");
        memcpy(&set_mode, &symbol, sizeof set_mode);
        set_mode(0);
    }
    if (getenv("GRPC_VERBOSITY") == NULL) gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
    gpr_set_log_function(log_from_grpc);
}

/* ---- open, close ------------------------------------------------------------------------------ */

static void woke(struct rpc_tag *tag, bool ok)
{
    (void)ok;
    struct rpc *r = (struct rpc *)((char *)tag - offsetof(struct rpc, wake_tag));
    pthread_mutex_lock(&r->wake_lock);
    r->wake_pending = false;
    pthread_mutex_unlock(&r->wake_lock);
}

enum err_code rpc_open(struct rpc **out, struct err *why)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_process_switches);

    struct rpc *r = mem_zalloc(sizeof *r);
    if (r == NULL) return err_nomem(why, "rpc queue");
    if (pthread_mutex_init(&r->wake_lock, NULL) != 0) {
        mem_free(r);
        return err_nomem(why, "rpc lock");
    }
    grpc_init();
    r->cq = grpc_completion_queue_create_for_next(NULL);
    r->wake_channel =
        grpc_lame_client_channel_create("wake", GRPC_STATUS_UNAVAILABLE, "wake-up handle");
    r->wake_call = grpc_channel_create_call(r->wake_channel, NULL, 0, r->cq,
                                            grpc_slice_from_static_string("/wake"), NULL,
                                            gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    r->wake_tag.done = woke;
    *out = r;
    return ERR_OK;
}

static void dispatch(const grpc_event *ev)
{
    struct rpc_tag *tag = ev->tag;
    tag->done(tag, ev->success != 0);
}

void rpc_close(struct rpc *r)
{
    if (r == NULL) return;
    assert(r->timers == NULL); /* a link is still open */
    /* Closed links and calls may wait for completions yet: take them all. Their handlers start nothing new. */
    grpc_completion_queue_shutdown(r->cq);
    for (;;) {
        grpc_event ev =
            grpc_completion_queue_next(r->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (ev.type == GRPC_QUEUE_SHUTDOWN) break;
        if (ev.type == GRPC_OP_COMPLETE) dispatch(&ev);
    }
    grpc_call_unref(r->wake_call);
    grpc_channel_destroy(r->wake_channel);
    grpc_completion_queue_destroy(r->cq);
    pthread_mutex_destroy(&r->wake_lock);
    mem_free(r);
    grpc_shutdown();
}

void rpc_set_spin(struct rpc *r, uint32_t spin_us)
{
    r->spin_us = spin_us;
}

void rpc_wake(struct rpc *r)
{
    pthread_mutex_lock(&r->wake_lock);
    if (!r->wake_pending) {
        r->wake_pending = true;
        grpc_call_error e = grpc_call_start_batch(r->wake_call, NULL, 0, &r->wake_tag, NULL);
        assert(e == GRPC_CALL_OK);
    }
    pthread_mutex_unlock(&r->wake_lock);
}

/* ---- timers ----------------------------------------------------------------------------------- */

void rpc_timer_arm(struct rpc *r, struct rpc_timer *t, uint64_t delay_us)
{
    rpc_timer_disarm(r, t);
    t->due_us = clock_now_us() + delay_us;
    t->prev = NULL;
    t->next = r->timers;
    if (t->next != NULL) t->next->prev = t;
    r->timers = t;
    t->armed = true;
}

void rpc_timer_disarm(struct rpc *r, struct rpc_timer *t)
{
    if (!t->armed) return;
    if (t->prev != NULL)
        t->prev->next = t->next;
    else
        r->timers = t->next;
    if (t->next != NULL) t->next->prev = t->prev;
    t->armed = false;
}

static unsigned fire_timers(struct rpc *r, uint64_t now_us)
{
    unsigned n = 0;
    for (
        ;
        ;) { /* from the front after each: a callback may change the list. Fired timers are off it. */
        struct rpc_timer *t = r->timers;
        while (t != NULL && t->due_us > now_us)
            t = t->next;
        if (t == NULL) return n;
        rpc_timer_disarm(r, t);
        t->fire(t);
        n++;
    }
}

static uint64_t next_timer_us(const struct rpc *r)
{
    uint64_t due = UINT64_MAX;
    for (const struct rpc_timer *t = r->timers; t != NULL; t = t->next)
        if (t->due_us < due) due = t->due_us;
    return due;
}

/* ---- polling ---------------------------------------------------------------------------------- */

static unsigned take_ready(struct rpc *r)
{
    unsigned n = 0;
    while (n < EVENTS_PER_POLL) {
        grpc_event ev = grpc_completion_queue_next(r->cq, gpr_inf_past(GPR_CLOCK_MONOTONIC), NULL);
        if (ev.type != GRPC_OP_COMPLETE) break;
        dispatch(&ev);
        n++;
    }
    if (r->timers != NULL) n += fire_timers(r, clock_now_us());
    return n;
}

unsigned rpc_poll(struct rpc *r, uint64_t timeout_us)
{
    unsigned n = take_ready(r);
    if (n > 0 || timeout_us == 0) return n;

    uint64_t start = clock_now_us();
    uint64_t end = timeout_us > UINT64_MAX - start ? UINT64_MAX : start + timeout_us;
    uint64_t spin_end = timeout_us < r->spin_us ? end : start + r->spin_us;
    uint64_t now = start;
    while (now < spin_end) {
        n = take_ready(r);
        if (n > 0) return n;
        now = clock_now_us();
    }
    while (now < end) {
        uint64_t timer = next_timer_us(r);
        uint64_t until = timer < end ? timer : end;
        gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
        if (until <= now)
            deadline = gpr_inf_past(GPR_CLOCK_MONOTONIC);
        else if (until - now < (uint64_t)INT64_MAX / 2)
            deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                    gpr_time_from_micros((int64_t)(until - now), GPR_TIMESPAN));
        grpc_event ev = grpc_completion_queue_next(r->cq, deadline, NULL);
        if (ev.type == GRPC_OP_COMPLETE) {
            dispatch(&ev);
            return 1 + take_ready(r);
        }
        now = clock_now_us();
        if (r->timers != NULL) n = fire_timers(r, now);
        if (n > 0) return n;
    }
    return n;
}
