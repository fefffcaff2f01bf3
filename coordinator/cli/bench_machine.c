#include "coordinator/cli/bench_machine.h"

#include <pthread.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"

#define ALL_BYTES   ((size_t)512 << 20)
#define LEAST_BYTES ((size_t)32 << 20) /* of a thread */
#define PIECE_BYTES ((size_t)8 << 20)
#define RUN_NS      250000000u
#define PEAK_ROUNDS 20000u

enum loop { LOOP_READ, LOOP_INT8, LOOP_F32 };

struct runner {
    struct bench_machine *m;
    pthread_t thread;
    const uint8_t *bytes;
    enum loop loop;
    double rate; /* of this thread */
    uint64_t sink;
};

struct bench_machine {
    const struct kernels *k;
    unsigned n_threads;
    size_t bytes; /* of a thread */
    uint8_t *memory;
    struct runner *runners;
};

static void *run(void *ctx)
{
    struct runner *r = ctx;
    const struct kernels *k = r->m->k;
    uint64_t begin = clock_now_ns(), now = begin, work = 0;
    for (size_t at = 0; now - begin < RUN_NS; now = clock_now_ns()) {
        if (r->loop != LOOP_READ) {
            work += r->loop == LOOP_F32 ? k->peak_f32(PEAK_ROUNDS) : k->peak_int8(PEAK_ROUNDS);
            continue;
        }
        if (at + PIECE_BYTES > r->m->bytes) at = 0;
        r->sink += k->peak_read(r->bytes + at, PIECE_BYTES);
        at += PIECE_BYTES;
        work += PIECE_BYTES;
    }
    r->rate = (double)work / (double)(now - begin);
    return NULL;
}

/* The sum of what each thread reached while the others ran too. A thread that cannot be started counts as 0. */
static double run_all(struct bench_machine *m, enum loop loop)
{
    double rate = 0;
    unsigned started = 1;
    for (unsigned i = 0; i < m->n_threads; i++)
        m->runners[i].loop = loop;
    while (started < m->n_threads &&
           pthread_create(&m->runners[started].thread, NULL, run, &m->runners[started]) == 0)
        started++;
    run(&m->runners[0]);
    for (unsigned i = 0; i < started; i++) {
        if (i > 0) pthread_join(m->runners[i].thread, NULL);
        rate += m->runners[i].rate;
    }
    return rate;
}

enum err_code bench_machine_open(const struct kernels *k, unsigned threads,
                                 struct bench_machine **out, struct err *why)
{
    struct bench_machine *m = mem_zalloc(sizeof *m);
    if (m == NULL) return err_nomem(why, "a benchmark");
    *m = (struct bench_machine){.k = k, .n_threads = threads};
    m->bytes = ALL_BYTES / threads / PIECE_BYTES * PIECE_BYTES;
    if (m->bytes < LEAST_BYTES) m->bytes = LEAST_BYTES;
    m->runners = mem_zalloc_array(threads, sizeof *m->runners);
    m->memory = mem_map(m->bytes * threads);
    if (m->runners == NULL || m->memory == NULL) {
        bench_machine_close(m);
        return err_nomem(why, "the read loop's memory");
    }
    memset(m->memory, 0x3c, m->bytes * threads);
    for (unsigned i = 0; i < threads; i++)
        m->runners[i] = (struct runner){.m = m, .bytes = m->memory + i * m->bytes};
    *out = m;
    return ERR_OK;
}

void bench_machine_close(struct bench_machine *m)
{
    if (m == NULL) return;
    mem_unmap(m->memory, m->bytes * m->n_threads);
    mem_free(m->runners);
    mem_free(m);
}

double bench_machine_read(struct bench_machine *m)
{
    return run_all(m, LOOP_READ);
}

double bench_machine_peak(struct bench_machine *m, bool f32)
{
    return run_all(m, f32 ? LOOP_F32 : LOOP_INT8);
}
