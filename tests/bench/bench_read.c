/* bench_read - how fast this machine reads memory: what decoding is compared with.
 *
 * usage: bench_read [THREADS [MIB]]     (default 1 and 1024)
 *
 * Every thread reads its own contiguous part once per round with 32-byte loads and adds it up, nothing else. Prints
 * GB/s of all threads together: the median and the best of 9 rounds. */
// links: base
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"

#define ROUNDS      9
#define MAX_THREADS 256u

typedef uint64_t lanes __attribute__((vector_size(32)));

struct reader {
    pthread_t thread;
    pthread_barrier_t *start, *end;
    const uint8_t *p;
    size_t bytes;
    uint64_t sum;
};

#if defined(__x86_64__)
__attribute__((target("avx2")))
#endif
static uint64_t
read_all(const uint8_t *p, size_t bytes)
{
    const lanes *at = (const lanes *)(const void *)p;
    lanes sum[4] = {{0}};
    for (size_t i = 0; i + 4 <= bytes / sizeof *at; i += 4)
        for (int j = 0; j < 4; j++)
            sum[j] += at[i + (size_t)j];
    sum[0] += sum[1] + sum[2] + sum[3];
    return sum[0][0] + sum[0][1] + sum[0][2] + sum[0][3];
}

static void *reader_main(void *arg)
{
    struct reader *r = arg;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(r->start);
        r->sum += read_all(r->p, r->bytes);
        pthread_barrier_wait(r->end);
    }
    return NULL;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    unsigned n = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
    size_t mib = argc > 2 ? strtoul(argv[2], NULL, 10) : 1024;
    static struct reader readers[MAX_THREADS];
    if (n < 1 || n > MAX_THREADS || mib < 1) {
        fprintf(stderr, "usage: bench_read [THREADS 1..%u [MIB]]\n", MAX_THREADS);
        return 2;
    }
    size_t each = (mib << 20) / n / 4096 * 4096, all = each * n;
    uint8_t *p = mem_map(all);
    if (p == NULL) {
        fprintf(stderr, "bench_read: no memory for %zu MiB\n", mib);
        return 1;
    }
    memset(p, 1, all);
    pthread_barrier_t start, end;
    pthread_barrier_init(&start, NULL, n + 1);
    pthread_barrier_init(&end, NULL, n + 1);
    for (unsigned i = 0; i < n; i++) {
        readers[i] =
            (struct reader){.start = &start, .end = &end, .p = p + i * each, .bytes = each};
        if (pthread_create(&readers[i].thread, NULL, reader_main, &readers[i]) != 0) return 1;
    }
    double gbs[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t began = clock_now_ns();
        pthread_barrier_wait(&start);
        pthread_barrier_wait(&end);
        gbs[round] = (double)all / (double)(clock_now_ns() - began);
    }
    uint64_t sum = 0;
    for (unsigned i = 0; i < n; i++) {
        pthread_join(readers[i].thread, NULL);
        sum += readers[i].sum;
    }
    qsort(gbs, ROUNDS, sizeof *gbs, ascending);
    printf(
        "{\"threads\": %u, \"mib\": %zu, \"median_gbs\": %.2f, \"best_gbs\": %.2f, \"sum\": %llu}\n",
        n, all >> 20, gbs[ROUNDS / 2], gbs[ROUNDS - 1], (unsigned long long)sum);
    mem_unmap(p, all);
    return 0;
}
