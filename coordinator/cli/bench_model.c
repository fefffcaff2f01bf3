/* moesaic bench model: decode and prefill through the HTTP API, one process beside a cluster on the same cores, and beside
 * what the machine gives at most. Every round measures the machine, then starts each setup in turn; medians over rounds.
 * Every prompt is different, so that no cache answers, and its tokens are random, so that routing is. */
#include <argp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/modelfile/model_file.h"
#include "common/sys/memory.h"
#include "coordinator/cli/bench.h"
#include "coordinator/cli/bench_machine.h"
#include "coordinator/cli/bench_requests.h"
#include "coordinator/cli/random_model.h"
#include "coordinator/cli/up_child.h"

#define DEFAULT_SHAPE "olmoe-1b-7b,layers=4"
#define MAX_SETUPS    8u
#define MAX_COUNTS    8u /* of the lists that options give */
#define MAX_STREAMS   256u
#define MAX_ROUNDS    99u
#define MAX_WORDS     32u /* of --up */
#define DECODE_PROMPT 8u
#define PREFILLS      2u /* per round */

static volatile int interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

struct counts {
    unsigned v[MAX_COUNTS], n;
};

struct cfg {
    const char *shape, *model, *make, *quantize, *baseline;
    char *up; /* further options of `moesaic up`, cut into words while running */
    struct counts nodes, streams;
    unsigned tokens, prompt, rounds;
    bool json;
};

/* One kind of cluster, of one build. */
struct setup {
    char name[48];
    const char *program; /* NULL: this one */
    unsigned nodes;
    /* One figure per round; prefill PREFILLS. Tokens per second; seconds from the start until ready. */
    double decode[MAX_COUNTS][MAX_ROUNDS], prefill[MAX_ROUNDS * PREFILLS], load_s[MAX_ROUNDS];
};

struct bench {
    struct cfg cfg;
    const struct kernels *kernels;
    unsigned threads;
    struct hparams hp;
    uint64_t file_bytes;
    bool f32_peak; /* products of 16 and 32 bit weights are f32 multiplications */
    double bytes_per_token, ops_per_token; /* decode of one stream; prefill, without the head */
    struct bench_machine *machine;
    double read[MAX_ROUNDS], peak[MAX_ROUNDS];
    struct setup setups[MAX_SETUPS];
    unsigned n_setups;
    struct up_child up;
    char http[300];
    char words[2048];
    const char *up_words[MAX_WORDS];
    unsigned n_up_words;
};

/* ---- figures ---------------------------------------------------------------------------------- */

/* Tokens per second of all streams together, from the last first token to the first last one: then all decode. */
static enum err_code measure_decode(struct bench *b, unsigned streams, double *out, struct err *why)
{
    const unsigned tokens = b->cfg.tokens;
    const struct bench_requests q = {b->http,       b->hp.vocab, streams,
                                     DECODE_PROMPT, tokens,      &interrupted};
    uint64_t *at_ns = mem_zalloc_array((size_t)streams * tokens, sizeof *at_ns), began_ns;
    if (at_ns == NULL) return err_nomem(why, "times");
    enum err_code rc = bench_requests_run(&q, &began_ns, at_ns, why);
    uint64_t begin = 0, end = UINT64_MAX;
    for (unsigned i = 0; i < streams; i++) {
        const uint64_t first = at_ns[i * tokens], last = at_ns[(i + 1) * tokens - 1];
        if (first > begin) begin = first;
        if (last < end) end = last;
    }
    unsigned n = 0;
    for (unsigned i = 0; i < streams * tokens; i++)
        n += at_ns[i] > begin && at_ns[i] <= end;
    if (rc == ERR_OK && end <= begin)
        rc = err_set(why, ERR_INVALID,
                     "--tokens=%u is too few: the first of %u streams ended before the last began",
                     tokens, streams);
    *out = n * 1e9 / (double)(end - begin);
    mem_free(at_ns);
    return rc;
}

static enum err_code measure_prefill(struct bench *b, double *out, struct err *why)
{
    const struct bench_requests q = {b->http, b->hp.vocab, 1, b->cfg.prompt, 1, &interrupted};
    uint64_t began_ns, at_ns = 0;
    enum err_code rc = bench_requests_run(&q, &began_ns, &at_ns, why);
    *out = b->cfg.prompt * 1e9 / (double)(at_ns - began_ns);
    return rc;
}

static enum err_code start(struct bench *b, const struct setup *s, struct err *why)
{
    char nodes[32], quantize[64], ready[128], ctx[32];
    unsigned most = b->cfg.prompt > b->cfg.tokens ? b->cfg.prompt : b->cfg.tokens;
    snprintf(nodes, sizeof nodes, "--nodes=%u", s->nodes);
    snprintf(quantize, sizeof quantize, "--quantize=%s", b->cfg.quantize);
    snprintf(ready, sizeof ready, "--ready-file=%s", b->up.ready_file);
    snprintf(ctx, sizeof ctx, "--ctx=%u", most + 64);
    const char *argv[16 + MAX_WORDS] = {
        "moesaic", "up", nodes, quantize, ready, ctx, "--http=127.0.0.1:0", "--grpc=127.0.0.1:0"};
    unsigned n = 8;
    for (unsigned i = 0; i < b->n_up_words; i++)
        argv[n++] = b->up_words[i];
    argv[n++] = "--";
    argv[n] = b->cfg.model;
    enum err_code rc = up_child_start(&b->up, s->program, argv, false, why);
    if (rc != ERR_OK) return rc;
    if (!up_child_wait_ready(&b->up, &interrupted)) {
        if (interrupted) return err_set(why, ERR_CANCELLED, "interrupted");
        up_child_print_log(&b->up);
        return err_set(why, ERR_UNAVAILABLE, "%s could not start; the lines above say why",
                       s->name);
    }
    json_t *facts;
    rc = json_parse_file(b->up.ready_file, LIMIT_CONFIG_JSON_BYTES, 8, &facts, why);
    if (rc != ERR_OK) return rc;
    const char *http = json_string_value(json_object_get(facts, "http"));
    snprintf(b->http, sizeof b->http, "%s", http != NULL ? http : "");
    json_decref(facts);
    return ERR_OK;
}

static enum err_code measure_setup(struct bench *b, struct setup *s, unsigned round,
                                   struct err *why)
{
    double warm_up;
    uint64_t began = clock_now_ns();
    enum err_code rc = start(b, s, why);
    s->load_s[round] = (double)(clock_now_ns() - began) * 1e-9;
    if (rc == ERR_OK) rc = measure_prefill(b, &warm_up, why);
    for (unsigned i = 0; i < b->cfg.streams.n && rc == ERR_OK; i++)
        rc = measure_decode(b, b->cfg.streams.v[i], &s->decode[i][round], why);
    for (unsigned i = 0; i < PREFILLS && rc == ERR_OK; i++)
        rc = measure_prefill(b, &s->prefill[round * PREFILLS + i], why);
    up_child_stop(&b->up, &interrupted);
    if (rc != ERR_OK) return rc;
    fprintf(stderr, "round %u of %u, %s:", round + 1, b->cfg.rounds, s->name);
    for (unsigned i = 0; i < b->cfg.streams.n; i++)
        fprintf(stderr, " decode x%u %.1f,", b->cfg.streams.v[i], s->decode[i][round]);
    fprintf(stderr, " prefill %.1f tokens/s\n", s->prefill[round * PREFILLS]);
    return ERR_OK;
}

/* ---- what a token costs ----------------------------------------------------------------------- */

static void count_costs(struct bench *b)
{
    const struct hparams *h = &b->hp;
    const bool q8 = strcmp(b->cfg.quantize, "q8_0") == 0,
               f32 = strcmp(h->dtype_hint, "float32") == 0;
    const double per_weight = q8 ? 1 + 2.0 / 32 : f32 ? 4 : 2; /* q8_0: an f16 scale for 32 */
    double layers = 0, router = 0;
    for (uint32_t l = 0; l < h->n_layers; l++) {
        layers += 2.0 * h->hidden * h->head_dim * (h->n_heads + h->n_kv_heads);
        layers +=
            3.0 * h->hidden * (h->is_moe[l] ? (double)h->top_k * h->expert_width : h->dense_width);
        if (h->is_moe[l]) router += (double)h->n_experts * h->hidden;
    }
    b->f32_peak = !q8;
    b->bytes_per_token = (layers + (double)h->vocab * h->hidden) * per_weight + 4 * router;
    b->ops_per_token = 2 * (layers + router);
}

/* ---- output ----------------------------------------------------------------------------------- */

/* Medians of a setup. */
struct row {
    double decode[MAX_COUNTS], prefill, load_s;
};

static struct row row_of(const struct bench *b, const struct setup *s)
{
    struct setup copy = *s; /* median sorts */
    struct row r;
    for (unsigned i = 0; i < b->cfg.streams.n; i++)
        r.decode[i] = bench_median(copy.decode[i], b->cfg.rounds);
    r.prefill = bench_median(copy.prefill, b->cfg.rounds * PREFILLS);
    r.load_s = bench_median(copy.load_s, b->cfg.rounds);
    return r;
}

static void print_ratio(const struct bench *b, const char *name, const char *to,
                        const struct row *a, const struct row *base)
{
    char both[128];
    snprintf(both, sizeof both, "%s / %s", name, to);
    printf("%-24s", both);
    for (unsigned i = 0; i < b->cfg.streams.n; i++)
        printf("%11.2f%s", a->decode[i] / base->decode[i],
               b->cfg.streams.v[i] == 1 ? "          " : "");
    printf("%13.2f\n", a->prefill / base->prefill);
}

static void print_table(const struct bench *b, const struct row *rows, double read, double peak)
{
    const char *peak_name = b->f32_peak ? "f32" : "int8";
    printf(
        "%s, quantize %s, kernels %s, %u threads; medians of %u round%s, every setup in turn.\n"
        "Read loop %.1f GB/s, %s peak %.1f Gop/s; a token reads %.1f MB and takes %.2f Gop.\n\n%-24s",
        b->cfg.make != NULL || b->cfg.shape != NULL ? b->cfg.shape : b->cfg.model, b->cfg.quantize,
        b->kernels->name, b->threads, b->cfg.rounds, b->cfg.rounds == 1 ? "" : "s", read, peak_name,
        peak, b->bytes_per_token * 1e-6, b->ops_per_token * 1e-9, "tokens/s");
    for (unsigned i = 0; i < b->cfg.streams.n; i++) {
        char title[32];
        snprintf(title, sizeof title, "decode x%u", b->cfg.streams.v[i]);
        printf("%11s%s", title, b->cfg.streams.v[i] == 1 ? "   of read" : "");
    }
    printf("%9s %-3u   of peak  load s/GB\n", "prefill", b->cfg.prompt);
    for (unsigned k = 0; k < b->n_setups; k++) {
        printf("%-24s", b->setups[k].name);
        for (unsigned i = 0; i < b->cfg.streams.n; i++) {
            printf("%11.1f", rows[k].decode[i]);
            if (b->cfg.streams.v[i] == 1)
                printf("%8.0f %%", rows[k].decode[i] * b->bytes_per_token * 1e-7 / read);
        }
        printf("%13.1f%8.0f %%%11.2f\n", rows[k].prefill,
               rows[k].prefill * b->ops_per_token * 1e-7 / peak,
               rows[k].load_s / ((double)b->file_bytes * 1e-9));
    }
    const unsigned half = b->cfg.baseline != NULL ? b->n_setups / 2 : b->n_setups;
    printf("\n");
    for (unsigned k = 1; k < half; k++)
        if (b->setups[0].nodes == 0) print_ratio(b, b->setups[k].name, "one", &rows[k], &rows[0]);
    for (unsigned k = 0; k < half && b->cfg.baseline != NULL; k++)
        print_ratio(b, b->setups[k].name, "baseline", &rows[k], &rows[half + k]);
}

static void print_json(const struct bench *b, const struct row *rows, double read, double peak)
{
    printf(
        "{\"quantize\":\"%s\",\"kernels\":\"%s\",\"threads\":%u,\"rounds\":%u,\"prompt\":%u,\"read_gb_per_s\":%.2f,"
        "\"peak_%s_gop_per_s\":%.1f,\"bytes_per_token\":%.0f,\"ops_per_token\":%.0f,\"file_bytes\":%llu,\"setups\":[",
        b->cfg.quantize, b->kernels->name, b->threads, b->cfg.rounds, b->cfg.prompt, read,
        b->f32_peak ? "f32" : "int8", peak, b->bytes_per_token, b->ops_per_token,
        (unsigned long long)b->file_bytes);
    for (unsigned k = 0; k < b->n_setups; k++) {
        printf("%s{\"name\":\"%s\",\"nodes\":%u,\"decode\":{", k > 0 ? "," : "", b->setups[k].name,
               b->setups[k].nodes);
        for (unsigned i = 0; i < b->cfg.streams.n; i++)
            printf("%s\"%u\":%.2f", i > 0 ? "," : "", b->cfg.streams.v[i], rows[k].decode[i]);
        printf("},\"prefill\":%.2f,\"share_of_peak\":%.3f,\"load_s\":%.2f}", rows[k].prefill,
               rows[k].prefill * b->ops_per_token * 1e-9 / peak, rows[k].load_s);
    }
    printf("]}\n");
}

/* ---- the whole -------------------------------------------------------------------------------- */

static enum err_code read_model(struct bench *b, struct err *why)
{
    struct model_file *f;
    enum err_code rc = model_file_open(b->cfg.model, &f, why);
    if (rc != ERR_OK) return rc;
    b->hp = *model_file_hparams(f);
    for (uint32_t i = 0; i < model_file_n_paths(f); i++)
        b->file_bytes += model_file_size(f, i);
    model_file_close(f);
    if (b->cfg.prompt + 64 > b->hp.ctx_max)
        return err_set(why, ERR_INVALID,
                       "--prompt=%u and some tokens do not fit the model's context of %u",
                       b->cfg.prompt, b->hp.ctx_max);
    count_costs(b);
    return ERR_OK;
}

static enum err_code split_up(struct bench *b, struct err *why)
{
    if (b->cfg.up == NULL) return ERR_OK;
    if (strlen(b->cfg.up) >= sizeof b->words) return err_set(why, ERR_INVALID, "--up is too long");
    strcpy(b->words, b->cfg.up);
    char *rest;
    for (char *word = strtok_r(b->words, " ", &rest); word != NULL;
         word = strtok_r(NULL, " ", &rest)) {
        if (b->n_up_words == MAX_WORDS)
            return err_set(why, ERR_INVALID, "--up has more than %u words", MAX_WORDS);
        b->up_words[b->n_up_words++] = word;
    }
    return ERR_OK;
}

static void list_setups(struct bench *b)
{
    for (int base = 0; base <= (b->cfg.baseline != NULL); base++)
        for (unsigned i = 0; i < b->cfg.nodes.n; i++) {
            struct setup *s = &b->setups[b->n_setups++];
            *s = (struct setup){.program = base ? b->cfg.baseline : NULL,
                                .nodes = b->cfg.nodes.v[i]};
            if (s->nodes == 0)
                snprintf(s->name, sizeof s->name, "%sone process", base ? "baseline " : "");
            else
                snprintf(s->name, sizeof s->name, "%s%u node%s", base ? "baseline " : "", s->nodes,
                         s->nodes > 1 ? "s" : "");
        }
}

static enum err_code measure(struct bench *b, struct err *why)
{
    enum err_code rc = bench_machine_open(b->kernels, b->threads, &b->machine, why);
    for (unsigned round = 0; round < b->cfg.rounds && rc == ERR_OK; round++) {
        b->read[round] = bench_machine_read(b->machine);
        b->peak[round] = bench_machine_peak(b->machine, b->f32_peak);
        for (unsigned k = 0; k < b->n_setups && rc == ERR_OK; k++)
            rc = measure_setup(b, &b->setups[k], round, why);
    }
    bench_machine_close(b->machine);
    if (rc != ERR_OK) return rc;
    struct row rows[MAX_SETUPS];
    for (unsigned k = 0; k < b->n_setups; k++)
        rows[k] = row_of(b, &b->setups[k]);
    (b->cfg.json ? print_json : print_table)(b, rows, bench_median(b->read, b->cfg.rounds),
                                             bench_median(b->peak, b->cfg.rounds));
    return ERR_OK;
}

static enum err_code make(struct bench *b, const char *folder, struct err *why)
{
    struct random_shape shape;
    enum err_code rc = random_shape_parse(b->cfg.shape, &shape, why);
    if (rc != ERR_OK) return rc;
    fprintf(stderr, "Writing %s (%u of %u layers, random weights): %.1f GB to %s\n", shape.name,
            shape.layers, shape.all_layers, (double)random_model_bytes(&shape) * 1e-9, folder);
    return random_model_write(folder, &shape, why);
}

static enum err_code run(struct bench *b, struct err *why)
{
    if (b->cfg.make != NULL) return make(b, b->cfg.make, why);
    char folder[128];
    enum err_code rc = kernels_pick(NULL, &b->kernels, why);
    if (rc == ERR_OK) rc = split_up(b, why);
    if (rc == ERR_OK) rc = up_child_open(&b->up, "bench", why);
    if (rc != ERR_OK) return rc;
    snprintf(folder, sizeof folder, "%s/model", b->up.folder);
    const bool made = b->cfg.model == NULL;
    if (made) {
        b->cfg.model = folder;
        rc = make(b, folder, why);
    }
    if (rc == ERR_OK) rc = read_model(b, why);
    if (rc == ERR_OK) rc = measure(b, why);
    if (made) random_model_remove(folder);
    up_child_close(&b->up);
    return rc;
}

enum {
    OPT_SHAPE = 0x100,
    OPT_MODEL,
    OPT_MAKE,
    OPT_QUANTIZE,
    OPT_NODES,
    OPT_STREAMS,
    OPT_TOKENS,
    OPT_PROMPT,
    OPT_ROUNDS,
    OPT_UP,
    OPT_BASELINE,
    OPT_JSON
};

static const struct argp_option options[] = {
    {"shape", OPT_SHAPE, "NAME[,layers=N...]", 0,
     "Random weights in the shape of a published model: olmoe-1b-7b, mixtral-8x7b or qwen3-30b-a3b; numbers that can be "
     "changed: layers, hidden, width, experts, top_k, heads, kv_heads, head_dim, vocab (default " DEFAULT_SHAPE
     ")",
     1},
    {"model", OPT_MODEL, "DIR", 0, "Measure this model instead", 1},
    {"make", OPT_MAKE, "DIR", 0, "Only write the random model there, for later runs with --model",
     1},
    {"quantize", OPT_QUANTIZE, "none|q8_0", 0, "As of `moesaic up` (default q8_0)", 2},
    {"nodes", OPT_NODES, "N,...", 0, "Setups: how many nodes each, 0 is one process (default 0,2)",
     2},
    {"streams", OPT_STREAMS, "N,...", 0, "Streams that decode at once (default 1,16)", 2},
    {"tokens", OPT_TOKENS, "N", 0, "Tokens of a stream (default 32)", 2},
    {"prompt", OPT_PROMPT, "N", 0, "Tokens of the long prompt (default 512)", 2},
    {"rounds", OPT_ROUNDS, "N", 0, "1 to 99 (default 3)", 2},
    {"up", OPT_UP, "OPTIONS", 0, "More options for `moesaic up`, separated by spaces", 3},
    {"baseline", OPT_BASELINE, "PROGRAM", 0,
     "A `moesaic` of another build, measured in turn with this one", 3},
    {"json", OPT_JSON, NULL, 0, "Print one JSON object", 3},
    {0}};

static struct counts parse_counts(struct argp_state *state, const char *name, const char *text,
                                  unsigned least, unsigned most)
{
    struct counts c = {0};
    for (const char *at = text;;) {
        char *end;
        unsigned long v = strtoul(at, &end, 10);
        if (*at < '0' || *at > '9' || (*end != ',' && *end != '\0') || v < least || v > most ||
            c.n == MAX_COUNTS)
            argp_error(state,
                       "--%s is at most %u numbers from %u to %u with commas between, not '%s'",
                       name, MAX_COUNTS, least, most, text);
        c.v[c.n++] = (unsigned)v;
        if (*end == '\0') return c;
        at = end + 1;
    }
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct cfg *c = state->input;
    switch (key) {
    case OPT_SHAPE:
        c->shape = arg;
        break;
    case OPT_MODEL:
        c->model = arg;
        break;
    case OPT_MAKE:
        c->make = arg;
        break;
    case OPT_QUANTIZE:
        if (strcmp(arg, "none") != 0 && strcmp(arg, "q8_0") != 0)
            argp_error(state, "--quantize is none or q8_0, not '%s'", arg);
        c->quantize = arg;
        break;
    case OPT_NODES:
        c->nodes = parse_counts(state, "nodes", arg, 0, LIMIT_NODES);
        break;
    case OPT_STREAMS:
        c->streams = parse_counts(state, "streams", arg, 1, MAX_STREAMS);
        break;
    case OPT_TOKENS:
        c->tokens = (unsigned)options_number(state, "tokens", arg, 2, 4096);
        break;
    case OPT_PROMPT:
        c->prompt = (unsigned)options_number(state, "prompt", arg, 1, 65536);
        break;
    case OPT_ROUNDS:
        c->rounds = (unsigned)options_number(state, "rounds", arg, 1, MAX_ROUNDS);
        break;
    case OPT_UP:
        c->up = arg;
        break;
    case OPT_BASELINE:
        c->baseline = arg;
        break;
    case OPT_JSON:
        c->json = true;
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s' is one word too many", arg);
        break;
    case ARGP_KEY_END:
        if (c->model != NULL && (c->shape != NULL || c->make != NULL))
            argp_error(state,
                       "--model measures a model that is there: --shape and --make make another");
        if (c->shape == NULL && c->model == NULL) c->shape = DEFAULT_SHAPE;
        if (c->nodes.n * (c->baseline != NULL ? 2 : 1) > MAX_SETUPS)
            argp_error(state, "%u setups are too many with --baseline: %u at most", c->nodes.n,
                       MAX_SETUPS / 2);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

int bench_model(int argc, char **argv)
{
    static const struct argp argp = {
        options,
        parse,
        NULL,
        "Measure decode and prefill of a model through the HTTP API: one process beside a cluster on this machine.\v"
        "`of read`: bytes of weights that one stream's tokens take per second, over those of a loop that only reads on all "
        "threads. `of peak`: multiplications and additions of a prompt's products per second, over those of a loop of "
        "multiply-adds over registers alone. `load`: from the start until the first request is taken, per GB of files.",
        NULL,
        NULL,
        NULL};
    struct bench *b = mem_zalloc(sizeof *b);
    if (b == NULL) return 1;
    b->threads = memory_cores();
    b->cfg = (struct cfg){.quantize = "q8_0",
                          .nodes = {{0, 2}, 2},
                          .streams = {{1, 16}, 2},
                          .tokens = 32,
                          .prompt = 512,
                          .rounds = 3};
    argp_parse(&argp, argc, argv, 0, NULL, &b->cfg);
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    list_setups(b);
    struct err why = {0};
    enum err_code rc = run(b, &why);
    mem_free(b);
    if (rc != ERR_OK) fprintf(stderr, "moesaic bench model: %s\n", why.text);
    return rc == ERR_OK ? 0 : rc == ERR_CANCELLED ? 130 : 1;
}
