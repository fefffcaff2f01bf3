#include "common/sys/workers.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"

#define PUMP_EVERY_US 200u

/* One run is named by a generation: helpers that see a new one take tasks from `next` until none is left.
 * The generation is part of `next`, so a helper that wakes late takes no task of a run it did not see. */
struct workers {
    unsigned count;
    uint32_t spin_us;
    pthread_t *threads;
    unsigned started;

    pthread_mutex_t lock;
    pthread_cond_t wake;
    _Atomic unsigned sleeping;
    _Atomic bool stop;

    _Atomic uint64_t generation;
    _Atomic uint64_t
        next; /* generation << 32 | next task: a late helper cannot take a task of another run */
    _Atomic uint32_t done;
    _Atomic uint32_t n_tasks;
    void (*fn)(void *, uint32_t, unsigned);
    void *ctx;

    void (*pump)(void *);
    void *pump_ctx;
};

struct helper {
    struct workers *w;
    unsigned index;
};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Take one task of run `gen`; false when there is none (any more). */
static bool take(struct workers *w, uint64_t gen, uint32_t *task)
{
    uint64_t seen = atomic_load_explicit(&w->next, memory_order_acquire);
    for (;;) {
        if (seen >> 32 != (gen & 0xffffffffu)) return false;
        uint32_t t = (uint32_t)seen;
        if (t >= atomic_load_explicit(&w->n_tasks, memory_order_relaxed)) return false;
        if (atomic_compare_exchange_weak_explicit(&w->next, &seen, seen + 1, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            *task = t;
            return true;
        }
    }
}

static void run_tasks(struct workers *w, uint64_t gen, unsigned worker)
{
    uint32_t task;
    while (take(w, gen, &task)) {
        w->fn(w->ctx, task, worker);
        atomic_fetch_add_explicit(&w->done, 1, memory_order_release);
    }
}

static void wait_for_work(struct workers *w, uint64_t seen)
{
    if (w->spin_us > 0) {
        uint64_t until = clock_now_us() + w->spin_us;
        do {
            for (int i = 0; i < 64; i++) {
                if (atomic_load_explicit(&w->generation, memory_order_acquire) != seen) return;
                relax();
            }
        } while (clock_now_us() < until && !atomic_load(&w->stop));
    }
    pthread_mutex_lock(&w->lock);
    atomic_fetch_add(&w->sleeping, 1);
    while (atomic_load(&w->generation) == seen && !atomic_load(&w->stop))
        pthread_cond_wait(&w->wake, &w->lock);
    atomic_fetch_sub(&w->sleeping, 1);
    pthread_mutex_unlock(&w->lock);
}

static void *helper_main(void *arg)
{
    struct helper h = *(struct helper *)arg;
    mem_free(arg);
    struct workers *w = h.w;
    uint64_t seen = 0;
    for (;;) {
        wait_for_work(w, seen);
        if (atomic_load(&w->stop)) return NULL;
        seen = atomic_load_explicit(&w->generation, memory_order_acquire);
        run_tasks(w, seen, h.index);
    }
}

enum err_code workers_open(unsigned n_threads, uint32_t spin_us, struct workers **out,
                           struct err *why)
{
    if (n_threads == 0) return err_set(why, ERR_INVALID, "threads must be at least 1");
    struct workers *w = mem_zalloc(sizeof *w);
    if (w == NULL) return err_nomem(why, "workers");
    w->count = 1;
    w->spin_us = spin_us;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    w->threads = mem_zalloc_array(n_threads, sizeof *w->threads);
    enum err_code rc = w->threads == NULL ? err_nomem(why, "workers") : ERR_OK;
    for (unsigned i = 1; i < n_threads && rc == ERR_OK; i++) {
        struct helper *h = mem_alloc(sizeof *h);
        if (h == NULL) {
            rc = err_nomem(why, "workers");
            break;
        }
        *h = (struct helper){w, i};
        int e = pthread_create(&w->threads[w->started], NULL, helper_main, h);
        if (e != 0) {
            mem_free(h);
            rc = err_set(why, ERR_EXHAUSTED, "start worker thread %u of %u: %s", i + 1, n_threads,
                         strerror(e));
            break;
        }
        w->started++;
        w->count++;
    }
    if (rc != ERR_OK) {
        workers_close(w);
        return rc;
    }
    *out = w;
    return ERR_OK;
}

void workers_close(struct workers *w)
{
    if (w == NULL) return;
    pthread_mutex_lock(&w->lock);
    atomic_store(&w->stop, true);
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < w->started; i++)
        pthread_join(w->threads[i], NULL);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->lock);
    mem_free(w->threads);
    mem_free(w);
}

unsigned workers_count(const struct workers *w)
{
    return w->count;
}

void workers_set_pump(struct workers *w, void (*pump)(void *ctx), void *ctx)
{
    w->pump = pump;
    w->pump_ctx = ctx;
}

void workers_run(struct workers *w, uint32_t n_tasks,
                 void (*fn)(void *ctx, uint32_t task, unsigned worker), void *ctx)
{
    if (n_tasks == 0) return;
    uint64_t pump_at = w->pump != NULL ? clock_now_us() + PUMP_EVERY_US : UINT64_MAX;
    bool alone = w->count == 1 || n_tasks == 1;
    uint64_t gen = atomic_load(&w->generation) + 1;
    if (!alone) {
        /* First no task at all: a helper still looking at the last run must not take from it under the new count. */
        atomic_store(&w->next, gen << 32 | UINT32_MAX);
        w->fn = fn;
        w->ctx = ctx;
        atomic_store(&w->n_tasks, n_tasks);
        atomic_store(&w->done, 0);
        atomic_store_explicit(&w->next, gen << 32, memory_order_release);
        atomic_store_explicit(&w->generation, gen, memory_order_seq_cst);
        if (atomic_load(&w->sleeping) > 0) {
            pthread_mutex_lock(&w->lock);
            pthread_cond_broadcast(&w->wake);
            pthread_mutex_unlock(&w->lock);
        }
    }
    uint32_t task = 0;
    while (alone ? task < n_tasks : take(w, gen, &task)) {
        fn(ctx, task, 0);
        if (alone)
            task++;
        else
            atomic_fetch_add_explicit(&w->done, 1, memory_order_release);
        if (w->pump != NULL && clock_now_us() >= pump_at) {
            w->pump(w->pump_ctx);
            pump_at = clock_now_us() + PUMP_EVERY_US;
        }
    }
    if (alone) return;
    for (unsigned spins = 0; atomic_load_explicit(&w->done, memory_order_acquire) < n_tasks;
         spins++) {
        if (spins < 4096)
            relax();
        else
            sched_yield(); /* more busy threads than cores: let the helper have ours */
    }
}
