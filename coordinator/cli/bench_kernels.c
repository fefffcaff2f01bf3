/* moesaic bench kernels: the products beside what the machine gives at most, one thread. Neighbors on the host move
 * absolute times within seconds, so every piece of a product runs between a piece of the read loop and one of the peak loop, and the
 * shares are medians over such triples. */
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/kernels/kernels.h"
#include "coordinator/cli/bench.h"

#define COLD_BYTES                                                                                 \
    ((size_t)256                                                                                   \
     << 20) /* more than any cache; each product meets memory that it has not seen lately */
#define MAX_ROWS     64u
#define MAX_PIECES   99u
#define PIECE_NS     4000000u
#define LARGEST_SIDE 16384u

static const uint32_t row_counts[] = {1, 4, 8, 16, 64};

/* Q8_0 first: the others' bytes per second stand beside its. */
static const struct {
    const char *name;
    enum dtype dtype;
    enum row_format input;
} formats[] = {
    {"q8_0", DTYPE_Q8_0, ROW_Q8},    {"q4_0", DTYPE_Q4_0, ROW_Q8}, {"q4_1", DTYPE_Q4_1, ROW_Q8},
    {"q5_0", DTYPE_Q5_0, ROW_Q8},    {"q5_1", DTYPE_Q5_1, ROW_Q8}, {"q4_k", DTYPE_Q4_K, ROW_Q8},
    {"q5_k", DTYPE_Q5_K, ROW_Q8},    {"q6_k", DTYPE_Q6_K, ROW_Q8}, {"mxfp4", DTYPE_MXFP4, ROW_Q8},
    {"f8", DTYPE_F8_E4M3, ROW_BF16}, {"f16", DTYPE_F16, ROW_BF16}, {"bf16", DTYPE_BF16, ROW_BF16},
    {"f32", DTYPE_F32, ROW_F32}};

struct bench {
    uint32_t n, k;
    unsigned pieces;
    const char *cpu;
    const char *only; /* a format's name, or NULL for all */
    bool json;

    const struct kernels *kernels;
    uint8_t *weights; /* COLD_BYTES, and one matrix more */
    size_t weights_bytes;
    uint64_t rounds[2]; /* of the peak loops (int8, f32) per piece */
    volatile uint64_t sink;
};

/* One format's matrices and rows. */
struct subject {
    struct packed w;
    size_t bytes; /* of a matrix */
    uint32_t count, next;
    struct rows x;
    float *y;
    void *scratch;
};

struct result {
    double us, read_share, peak_share, gbs, gops, warm_gops, warm_share;
};

static double elapsed_ns(uint64_t begin)
{
    return (double)(clock_now_ns() - begin);
}

/* Operations per ns. */
static double peak_piece(struct bench *b, bool f32)
{
    uint64_t begin = clock_now_ns();
    uint64_t ops = f32 ? b->kernels->peak_f32(b->rounds[1]) : b->kernels->peak_int8(b->rounds[0]);
    return (double)ops / elapsed_ns(begin);
}

static double read_piece(struct bench *b, size_t *at)
{
    const size_t bytes = (size_t)32 << 20;
    if (*at + bytes > COLD_BYTES) *at = 0;
    uint64_t begin = clock_now_ns();
    b->sink = b->sink + b->kernels->peak_read(b->weights + *at, bytes);
    *at += bytes;
    return (double)bytes / elapsed_ns(begin);
}

/* ns of one product, over so many that a piece is long enough. */
static double product_piece(struct bench *b, struct subject *s, bool warm)
{
    uint64_t begin = clock_now_ns();
    uint32_t runs = 0;
    do {
        struct packed w = s->w;
        w.data = b->weights + (warm ? 0 : s->next) * s->bytes;
        if (!warm) s->next = (s->next + 1) % s->count;
        b->kernels->matmul(&w, 0, w.panels, &s->x, s->y, w.n, s->scratch);
        runs++;
    } while (elapsed_ns(begin) < PIECE_NS);
    return elapsed_ns(begin) / runs;
}

static struct result measure(struct bench *b, struct subject *s, bool f32)
{
    double us[MAX_PIECES], read[MAX_PIECES], peak[MAX_PIECES], warm[MAX_PIECES],
        warm_peak[MAX_PIECES];
    const double ops = 2.0 * b->n * b->k * s->x.m;
    size_t at = 0;
    (void)product_piece(b, s, false);
    for (unsigned i = 0; i < b->pieces; i++) {
        const double gbs = read_piece(b, &at);
        const double ns = product_piece(b, s, false);
        const double gops = peak_piece(b, f32);
        const double warm_ns = product_piece(b, s, true);
        us[i] = ns / 1000;
        read[i] = (double)s->bytes / ns / gbs;
        peak[i] = ops / ns / gops;
        warm[i] = ops / warm_ns;
        warm_peak[i] = ops / warm_ns / gops;
    }
    struct result r = {.us = bench_median(us, b->pieces),
                       .read_share = bench_median(read, b->pieces),
                       .peak_share = bench_median(peak, b->pieces),
                       .warm_gops = bench_median(warm, b->pieces),
                       .warm_share = bench_median(warm_peak, b->pieces)};
    r.gbs = (double)s->bytes / (r.us * 1000);
    r.gops = ops / (r.us * 1000);
    return r;
}

static void print_result(const struct bench *b, const char *format, uint32_t rows,
                         const struct result *r, bool first)
{
    if (b->json)
        printf(
            "%s{\"format\":\"%s\",\"rows\":%u,\"us\":%.1f,\"gb_per_s\":%.2f,\"share_of_read\":%.3f,"
            "\"gop_per_s\":%.1f,\"share_of_peak\":%.3f,\"warm_gop_per_s\":%.1f,\"warm_share_of_peak\":%.3f}",
            first ? "" : ",", format, rows, r->us, r->gbs, r->read_share, r->gops, r->peak_share,
            r->warm_gops, r->warm_share);
    else
        printf("%-5s %5u %10.1f %8.1f %8.0f %% %9.1f %8.0f %% %9.1f %8.0f %%\n", format, rows,
               r->us, r->gbs, 100 * r->read_share, r->gops, 100 * r->peak_share, r->warm_gops,
               100 * r->warm_share);
    fflush(stdout);
}

static void close_subject(struct subject *s)
{
    mem_free(s->x.data);
    mem_free(s->x.scales);
    mem_free(s->y);
    mem_free(s->scratch);
}

static enum err_code open_subject(struct bench *b, size_t format, struct subject *s,
                                  struct err *why)
{
    *s = (struct subject){0};
    if (!packed_shape(formats[format].dtype, formats[format].input, b->n, b->k, &s->w))
        return err_set(why, ERR_INVALID, "%s does not take K = %u", formats[format].name, b->k);
    s->bytes = packed_bytes(&s->w);
    s->count = (uint32_t)(COLD_BYTES / s->bytes);
    if (s->count == 0) s->count = 1;
    s->x = (struct rows){.format = formats[format].input, .k = b->k};
    const size_t data = MAX_ROWS * row_data_bytes(s->x.format, b->k);
    const size_t scratch = matmul_scratch_bytes(&s->w, MAX_ROWS);
    s->x.data = mem_aligned(64, (data + 63) / 64 * 64);
    s->x.scales = mem_zalloc(MAX_ROWS * row_scale_bytes(s->x.format, b->k) + 1);
    s->y = mem_zalloc_array((size_t)MAX_ROWS * b->n, sizeof *s->y);
    s->scratch = mem_aligned(64, scratch > 0 ? scratch : 64);
    if (s->x.data == NULL || s->x.scales == NULL || s->y == NULL || s->scratch == NULL)
        return err_nomem(why, "a product's rows");
    memset(s->x.data, 0x3c, data); /* small numbers in every format: no NaN, nothing subnormal */
    return ERR_OK;
}

static enum err_code run(struct bench *b, struct err *why)
{
    double reads[MAX_PIECES], peaks[2][MAX_PIECES];
    size_t at = 0;
    for (int f = 0; f < 2; f++) { /* as many rounds as make a piece */
        b->rounds[f] = 1000;
        uint64_t begin = clock_now_ns();
        (void)peak_piece(b, f == 1);
        b->rounds[f] = (uint64_t)(1000.0 * PIECE_NS / (elapsed_ns(begin) + 1)) + 1;
    }
    for (unsigned i = 0; i < b->pieces; i++) {
        reads[i] = read_piece(b, &at);
        peaks[0][i] = peak_piece(b, false);
        peaks[1][i] = peak_piece(b, true);
    }
    const double read = bench_median(reads, b->pieces), int8 = bench_median(peaks[0], b->pieces),
                 f32 = bench_median(peaks[1], b->pieces);
    if (b->json)
        printf("{\"kernels\":\"%s\",\"n\":%u,\"k\":%u,\"pieces\":%u,\"read_gb_per_s\":%.2f,"
               "\"peak_int8_gop_per_s\":%.1f,\"peak_f32_gop_per_s\":%.1f,\"products\":[",
               b->kernels->name, b->n, b->k, b->pieces, read, int8, f32);
    else
        printf(
            "Kernels %s, %u outputs of %u inputs, one thread; medians of %u pieces, each between a piece of "
            "the read loop and one of the peak loop.\nRead loop %.1f GB/s, peak int8 %.1f Gop/s, peak f32 %.1f Gop/s.\n\n"
            "             ------------------ cold weights ------------------ -- warm weights ---\n"
            "%-5s %5s %10s %8s %10s %9s %10s %9s %10s\n",
            b->kernels->name, b->n, b->k, b->pieces, read, int8, f32, "", "rows", "us", "GB/s",
            "of read", "Gop/s", "of peak", "Gop/s", "of peak");
    enum err_code rc = ERR_OK;
    bool first = true;
    for (size_t f = 0; f < ARRAY_LEN(formats) && rc == ERR_OK; f++) {
        if (b->only != NULL && strcmp(b->only, formats[f].name) != 0) continue;
        struct subject s;
        rc = open_subject(b, f, &s, why);
        for (size_t i = 0; i < ARRAY_LEN(row_counts) && rc == ERR_OK; i++) {
            s.x.m = row_counts[i];
            struct result r = measure(b, &s, formats[f].input != ROW_Q8);
            print_result(b, formats[f].name, row_counts[i], &r, first);
            first = false;
        }
        close_subject(&s);
    }
    if (b->json) printf("]}\n");
    return rc;
}

enum {
    OPT_CPU = 'c',
    OPT_PIECES = 'p',
    OPT_OUTPUTS = 'n',
    OPT_INPUTS = 'k',
    OPT_FORMAT = 'f',
    OPT_JSON = 0x100
};

static const struct argp_option options[] = {
    {"outputs", OPT_OUTPUTS, "N", 0, "Output features, a multiple of 16 (default 1024)", 0},
    {"inputs", OPT_INPUTS, "K", 0, "Input features, a multiple of 256 (default 2048)", 0},
    {"cpu", OPT_CPU, "ref|avx2|avx512", 0, "Kernels (default: the best this CPU runs)", 0},
    {"format", OPT_FORMAT, "NAME", 0, "One format (q8_0, q4_k, mxfp4, ...; default: all)", 0},
    {"pieces", OPT_PIECES, "N", 0, "Pieces per figure, 1 to 99 (default 15)", 0},
    {"json", OPT_JSON, NULL, 0, "Print one JSON object", 0},
    {0}};

static uint32_t number(struct argp_state *state, const char *name, const char *arg, uint32_t step,
                       uint32_t most)
{
    char *end;
    unsigned long v = strtoul(arg, &end, 10);
    if (*arg < '0' || *arg > '9' || *end != '\0' || v < step || v > most || v % step != 0)
        argp_error(state, "--%s is a multiple of %u up to %u, not '%s'", name, step, most, arg);
    return (uint32_t)v;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct bench *b = state->input;
    switch (key) {
    case OPT_OUTPUTS:
        b->n = number(state, "outputs", arg, PANEL, LARGEST_SIDE);
        break;
    case OPT_INPUTS:
        b->k = number(state, "inputs", arg, 256, LARGEST_SIDE);
        break;
    case OPT_PIECES:
        b->pieces = number(state, "pieces", arg, 1, MAX_PIECES);
        break;
    case OPT_CPU:
        b->cpu = arg;
        break;
    case OPT_FORMAT:
        b->only = arg;
        for (size_t f = 0; f < ARRAY_LEN(formats); f++)
            if (strcmp(arg, formats[f].name) == 0) return 0;
        argp_error(state, "--format '%s' is unknown", arg);
        break;
    case OPT_JSON:
        b->json = true;
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s' is one word too many", arg);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

int bench_kernels(int argc, char **argv)
{
    struct bench b = {.n = 1024, .k = 2048, .pieces = 15};
    static const struct argp argp = {
        options,
        parse,
        NULL,
        "Measure the products of this CPU's kernels beside what it gives at most.\v"
        "`of read`: bytes of weights per second over those of a loop that only reads. `of peak`: operations per second "
        "over those of a loop of multiply-adds that never leaves the registers.",
        NULL,
        NULL,
        NULL};
    argp_parse(&argp, argc, argv, 0, NULL, &b);
    struct err why = {0};
    enum err_code rc = kernels_pick(b.cpu, &b.kernels, &why);
    struct packed largest;
    if (rc == ERR_OK && packed_shape(DTYPE_F32, ROW_F32, b.n, b.k, &largest)) {
        b.weights_bytes = COLD_BYTES + packed_bytes(&largest);
        b.weights = mem_map(b.weights_bytes);
    }
    if (rc == ERR_OK && b.weights == NULL) rc = err_nomem(&why, "weights");
    if (rc == ERR_OK) {
        memset(b.weights, 0x3c, b.weights_bytes);
        rc = run(&b, &why);
    }
    mem_unmap(b.weights, b.weights_bytes);
    if (rc != ERR_OK) fprintf(stderr, "moesaic bench kernels: %s\n", why.text);
    return rc == ERR_OK ? 0 : 1;
}
