/* moesaic bench attention: attention over a cache of 4096 tokens, one thread, by the number of rows that go together. Each
 * piece runs beside a piece of the peak loop, as neighbors on the host move absolute times within seconds; figures are
 * medians. */
#include <argp.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/kernels/kernels.h"
#include "coordinator/cli/bench.h"

#define TOKENS   4096u
#define BLOCKS   (TOKENS / ATTENTION_TOKENS)
#define PIECES   9u
#define PIECE_NS 3000000u
#define MOST_DIM 576u

static const struct {
    const char *name;
    uint32_t key_dim, value_dim;
    bool in_keys;
} shapes[] = {{"64", 64, 64, false}, {"128", 128, 128, false}, {"576/512", 576, 512, true}};

static const uint32_t row_counts[] = {1, 2, 4, 8, 16, 32};
#define MOST_ROWS 32u

struct bench {
    const struct kernels *kernels;
    const char *cpu;
    uint8_t *cache;
    float *q, *o; /* [MOST_ROWS, MOST_DIM] */
    uint64_t peak_rounds;
};

static double elapsed_ns(uint64_t begin)
{
    return (double)(clock_now_ns() - begin);
}

/* Operations per ns. */
static double peak_piece(const struct bench *b)
{
    uint64_t begin = clock_now_ns();
    uint64_t ops = b->kernels->peak_f32(b->peak_rounds);
    return (double)ops / elapsed_ns(begin);
}

/* ns for one row to meet one block, n rows going together through all blocks. */
static double piece(const struct bench *b, const struct attention_shape *s, bool in_keys,
                    uint32_t n)
{
    const size_t width = s->kv_bf16 ? 2 : 4;
    const size_t keys = ATTENTION_TOKENS * s->key_dim * width,
                 values = in_keys ? 0 : ATTENTION_TOKENS * s->value_dim * width;
    struct attention_row rows[MOST_ROWS];
    uint64_t begin = clock_now_ns();
    uint32_t runs = 0;
    do {
        for (uint32_t r = 0; r < n; r++)
            attention_row_start(&rows[r], b->q + (size_t)r * MOST_DIM, b->o + (size_t)r * MOST_DIM);
        for (uint32_t at = 0; at < BLOCKS; at++) {
            const uint8_t *block = b->cache + at * (keys + values);
            for (uint32_t r = 0; r < n; r++)
                rows[r].visible = ATTENTION_TOKENS;
            b->kernels->attention_block(s, rows, n, block, in_keys ? NULL : block + keys);
        }
        runs++;
    } while (elapsed_ns(begin) < PIECE_NS);
    return elapsed_ns(begin) / runs / BLOCKS / n;
}

static void run(struct bench *b)
{
    b->peak_rounds = 1000;
    uint64_t begin = clock_now_ns();
    (void)peak_piece(b);
    b->peak_rounds = (uint64_t)(1000.0 * PIECE_NS / (elapsed_ns(begin) + 1)) + 1;
    printf("Kernels %s, cache of %u tokens, one thread; medians of %u pieces.\n\n"
           "%-8s %-5s %5s %14s %8s %9s\n",
           b->kernels->name, TOKENS, PIECES, "width", "cache", "rows", "ns/row/block", "Gop/s",
           "of peak");
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        for (int bf16 = 1; bf16 >= 0; bf16--)
            for (size_t j = 0; j < ARRAY_LEN(row_counts); j++) {
                const struct attention_shape s = {.kv_bf16 = bf16,
                                                  .key_dim = shapes[i].key_dim,
                                                  .value_dim = shapes[i].value_dim,
                                                  .scale = 0.1f};
                double ns[PIECES], gops[PIECES], share[PIECES];
                const double ops = 2.0 * ATTENTION_TOKENS * (s.key_dim + s.value_dim);
                (void)piece(b, &s, shapes[i].in_keys, row_counts[j]);
                for (unsigned p = 0; p < PIECES; p++) {
                    const double peak = peak_piece(b);
                    ns[p] = piece(b, &s, shapes[i].in_keys, row_counts[j]);
                    gops[p] = ops / ns[p];
                    share[p] = gops[p] / peak;
                }
                printf("%-8s %-5s %5u %14.0f %8.1f %7.0f %%\n", shapes[i].name,
                       bf16 ? "bf16" : "f32", row_counts[j], bench_median(ns, PIECES),
                       bench_median(gops, PIECES), 100 * bench_median(share, PIECES));
                fflush(stdout);
            }
}

static const struct argp_option options[] = {
    {"cpu", 'c', "ref|avx2|avx512", 0, "Kernels (default: the best this CPU runs)", 0}, {0}};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct bench *b = state->input;
    if (key == 'c')
        b->cpu = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(state, "'%s' is one word too many", arg);
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

int bench_attention(int argc, char **argv)
{
    struct bench b = {0};
    static const struct argp argp = {
        options,
        parse,
        NULL,
        "Measure attention by the number of rows that meet a block of the cache together.\v"
        "`of peak`: operations per second over those of a loop of multiply-adds that never leaves the registers.",
        NULL,
        NULL,
        NULL};
    argp_parse(&argp, argc, argv, 0, NULL, &b);
    struct err why = {0};
    enum err_code rc = kernels_pick(b.cpu, &b.kernels, &why);
    const size_t bytes = (size_t)TOKENS * MOST_DIM * 4;
    b.cache = mem_map(bytes);
    b.q = mem_zalloc_array((size_t)MOST_ROWS * MOST_DIM, sizeof *b.q);
    b.o = mem_zalloc_array((size_t)MOST_ROWS * MOST_DIM, sizeof *b.o);
    if (rc == ERR_OK && (b.cache == NULL || b.q == NULL || b.o == NULL))
        rc = err_nomem(&why, "a cache");
    if (rc == ERR_OK) {
        memset(b.cache, 0x3c, bytes); /* small numbers, as bf16 and as f32 */
        for (size_t i = 0; i < (size_t)MOST_ROWS * MOST_DIM; i++)
            b.q[i] = 0.01f * (float)(i % 7);
        run(&b);
    }
    mem_unmap(b.cache, bytes);
    mem_free(b.q);
    mem_free(b.o);
    if (rc != ERR_OK) fprintf(stderr, "moesaic bench attention: %s\n", why.text);
    return rc == ERR_OK ? 0 : 1;
}
