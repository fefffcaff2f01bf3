/* cmd_inspect.c - `moesaic inspect`: what a model folder holds, whether it can be run, and what it will take.
 * Reads headers only: seconds for the largest models. */
#include <argp.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/modelfile/model_file.h"
#include "common/modelfile/plan.h"
#include "common/modelfile/weights.h"
#include "coordinator/cli/commands.h"

struct inspect_cfg {
    const char *model, *experts;
    enum quantize quantize;
    uint32_t nodes;
    bool files, json;
};

enum { OPT_EXPERTS = 256, OPT_FILES, OPT_NODES, OPT_QUANTIZE, OPT_JSON };

static const struct argp_option options[] = {
    {"experts", OPT_EXPERTS, "SPEC", 0,
     "Look at these experts: all, I/N, or LAYERS:EXPERTS as in 0-3:0-7,5:*", 0},
    {"files", OPT_FILES, NULL, 0, "List the files that hold them", 0},
    {"nodes", OPT_NODES, "N", 0, "Divide the experts among N nodes (default 3)", 0},
    {"quantize", OPT_QUANTIZE, "none|q8_0|q4_0|mxfp4", 0,
     "Plan for weights packed like this (default none)", 0},
    {"json", OPT_JSON, NULL, 0, "Print JSON", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct inspect_cfg *c = state->input;
    switch (key) {
    case OPT_EXPERTS:
        c->experts = arg;
        break;
    case OPT_FILES:
        c->files = true;
        break;
    case OPT_NODES:
        c->nodes = (uint32_t)options_number(state, "nodes", arg, 1, LIMIT_NODES);
        break;
    case OPT_QUANTIZE:
        if (!quantize_find(arg, &c->quantize))
            argp_error(state, "--quantize=%s: one of %s is wanted", arg, quantize_names());
        break;
    case OPT_JSON:
        c->json = true;
        break;
    case ARGP_KEY_ARG:
        if (c->model != NULL) argp_error(state, "one MODEL is wanted, and '%s' is a second", arg);
        c->model = arg;
        break;
    case ARGP_KEY_END:
        if (c->model == NULL)
            argp_error(
                state,
                "MODEL is missing: a folder with config.json and safetensors files, or a GGUF file");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp argp = {
    options,
    parse,
    "MODEL",
    "Show what a model folder holds, whether it can be run, and how much memory it takes."
    "\vExit code 2: wrong usage; 4: the model cannot be read or is not supported (the reason is on standard error).",
    NULL,
    NULL,
    NULL};

/* ---- gathering --------------------------------------------------------------------------------- */

static const char *const class_names[CLASS_N] = {
    [CLASS_EMBEDDING] = "embedding",   [CLASS_HEAD] = "head",
    [CLASS_ATTENTION] = "attention",   [CLASS_VECTOR] = "norms and biases",
    [CLASS_ROUTER] = "router",         [CLASS_DENSE] = "dense layers",
    [CLASS_SHARED] = "shared experts", [CLASS_EXPERT] = "experts",
};

struct class_sum {
    uint32_t tensors;
    uint64_t file_bytes, memory_bytes;
    bool has[DTYPE_N];
};

struct node_sum {
    uint32_t experts;
    uint64_t bytes;
};

struct report {
    const struct inspect_cfg *cfg;
    const struct model_file *file;
    const struct hparams *hp;
    struct plan_params params;
    struct plan_coordinator coordinator;
    struct class_sum classes[CLASS_N];
    uint64_t file_bytes, tensor_bytes, unused_bytes, kv_bytes_per_token, kept_bytes;
    uint32_t n_moe_layers, unused_tensors,
        kept_tensors; /* kept: matrices that --quantize cannot pack */
    char digest[MODEL_FILE_DIGEST_CHARS];
    struct expert_set wanted;     /* --experts */
    struct node_sum *nodes;       /* [cfg->nodes] */
    bool *file_needed;            /* [n_paths]: holds one of the wanted experts */
    const struct tensor **stored; /* [n_stored] the files' tensors, by address */
    bool *used;                   /* [n_stored] */
    uint32_t n_stored, n_repacks;
    struct plan_repack repacks[2 * PLAN_MAX_REPACKS]; /* of the coordinator, then of experts */
};

/* ---- which of the files' tensors are used: a role may be a part of one, and have its scales in another ---------- */

static int by_place(const void *a, const void *b)
{
    const uint8_t *x = (*(const struct tensor *const *)a)->data,
                  *y = (*(const struct tensor *const *)b)->data;
    return x < y ? -1 : x > y;
}

/* The tensor of a file that begins at `p` or last before it. */
static void mark_used(struct report *r, const uint8_t *p)
{
    uint32_t low = 0, high = r->n_stored;
    while (high - low > 1) {
        uint32_t mid = low + (high - low) / 2;
        if (r->stored[mid]->data <= p)
            low = mid;
        else
            high = mid;
    }
    r->used[low] = true;
}

/* What the role's numbers take in the file, with scales that stand apart. */
static uint64_t stored_bytes(const struct tensor *t)
{
    const uint64_t columns = tensor_columns(t), rows = tensor_n_elements(t) / columns;
    if (t->dtype == DTYPE_F8_E4M3)
        return rows * columns + sizeof(float) * ((rows + F8_BLOCK - 1) / F8_BLOCK) *
                                    ((columns + F8_BLOCK - 1) / F8_BLOCK);
    return rows * dtype_bytes(t->dtype, columns);
}

static void add_tensor(struct report *r, enum weight_role role, uint32_t layer, uint32_t expert)
{
    const struct tensor *t = model_file_find(r->file, role, layer, expert);
    if (t == NULL || (role == W_HEAD && r->hp->tied_head)) return;
    struct class_sum *c = &r->classes[weight_class(role)];
    c->tensors++;
    c->file_bytes += stored_bytes(t);
    c->has[t->dtype] = true;
    mark_used(r, t->data);
    if (t->scales != NULL) mark_used(r, t->scales);
    const enum weight_class class = weight_class(role);
    bool spared = class == CLASS_EMBEDDING || class == CLASS_ROUTER || class == CLASS_VECTOR ||
                  t->n_dims < 2 || dtype_block(t->dtype) != 1;
    if (r->cfg->quantize != QUANTIZE_NONE && !spared &&
        plan_dtype(role, t, r->cfg->quantize) == t->dtype) {
        r->kept_tensors++;
        r->kept_bytes += stored_bytes(t);
    }
    if (weight_class(role) == CLASS_EXPERT && expert_set_has(&r->wanted, layer, expert))
        r->file_needed[t->file] = true;
}

static void gather_classes(struct report *r)
{
    for (uint32_t i = 0; i < W_N_ROLES; i++) {
        enum weight_role role = (enum weight_role)i;
        uint32_t layers = weight_scope(role) == SCOPE_MODEL ? 1 : r->hp->n_layers;
        uint32_t experts = weight_scope(role) == SCOPE_EXPERT ? r->hp->n_experts : 1;
        for (uint32_t l = 0; l < layers; l++)
            for (uint32_t e = 0; e < experts; e++)
                add_tensor(r, role, l, e);
    }
    for (uint32_t i = 0; i < r->n_stored; i++) {
        r->tensor_bytes += r->stored[i]->bytes;
        if (r->used[i]) continue;
        r->unused_tensors++;
        r->unused_bytes += r->stored[i]->bytes;
    }
    r->n_repacks = plan_repacks(r->file, r->cfg->quantize, false, r->repacks);
    r->n_repacks += plan_repacks(r->file, r->cfg->quantize, true, r->repacks + r->n_repacks);
    r->coordinator = plan_coordinator(r->file, r->cfg->quantize);
    r->classes[CLASS_EMBEDDING].memory_bytes = r->coordinator.embedding;
    r->classes[CLASS_HEAD].memory_bytes = r->coordinator.head;
    r->classes[CLASS_ATTENTION].memory_bytes = r->coordinator.attention;
    r->classes[CLASS_VECTOR].memory_bytes = r->coordinator.vectors;
    r->classes[CLASS_ROUTER].memory_bytes = r->coordinator.router;
    r->classes[CLASS_DENSE].memory_bytes = r->coordinator.dense;
    r->classes[CLASS_SHARED].memory_bytes = r->coordinator.shared;
}

/* The placement that a cluster starts with: (layer + expert) mod N. */
static void gather_nodes(struct report *r)
{
    uint32_t n = r->cfg->nodes;
    for (uint32_t l = 0; l < r->hp->n_layers; l++) {
        if (!r->hp->is_moe[l]) continue;
        r->n_moe_layers++;
        uint64_t bytes = plan_expert_bytes(r->file, r->cfg->quantize, l);
        for (uint32_t e = 0; e < r->hp->n_experts; e++) {
            r->nodes[(l + e) % n].experts++;
            r->nodes[(l + e) % n].bytes += bytes;
        }
        r->classes[CLASS_EXPERT].memory_bytes += bytes * r->hp->n_experts;
    }
}

static enum err_code gather(struct report *r, struct err *why)
{
    enum err_code rc = experts_spec_parse(r->cfg->experts != NULL ? r->cfg->experts : "all", r->hp,
                                          &r->wanted, why);
    if (rc != ERR_OK) return rc;
    r->nodes = mem_zalloc_array(r->cfg->nodes, sizeof *r->nodes);
    r->file_needed = mem_zalloc_array(model_file_n_paths(r->file), sizeof *r->file_needed);
    r->n_stored = model_file_n_tensors(r->file);
    r->stored = mem_zalloc_array(r->n_stored, sizeof *r->stored);
    r->used = mem_zalloc_array(r->n_stored, sizeof *r->used);
    if (r->nodes == NULL || r->file_needed == NULL || r->stored == NULL || r->used == NULL)
        return err_nomem(why, "the report");
    for (uint32_t i = 0; i < r->n_stored; i++)
        r->stored[i] = model_file_tensor(r->file, i);
    qsort(r->stored, r->n_stored, sizeof *r->stored, by_place);
    gather_classes(r);
    gather_nodes(r);
    for (uint32_t i = 0; i < model_file_n_paths(r->file); i++)
        r->file_bytes += model_file_size(r->file, i);
    r->params = plan_params(r->file);
    r->kv_bytes_per_token = plan_kv_bytes_per_token(r->file, r->cfg->quantize);
    model_file_digest(r->file, quantize_name(r->cfg->quantize), r->digest);
    return ERR_OK;
}

/* ---- printing for people ----------------------------------------------------------------------- */

struct text {
    char s[48];
};

static struct text bytes_text(uint64_t bytes)
{
    static const char units[] = "KMGTPE";
    struct text t;
    double x = (double)bytes;
    int unit = -1;
    for (; x >= 1024 && unit < 5; unit++)
        x /= 1024;
    if (unit < 0)
        snprintf(t.s, sizeof t.s, "%" PRIu64 " B", bytes);
    else
        snprintf(t.s, sizeof t.s, "%.1f %ciB", x, units[unit]);
    return t;
}

static struct text count_text(uint64_t n)
{
    static const char units[] = " KMBT";
    struct text t;
    double x = (double)n;
    unsigned unit = 0;
    for (; x >= 1000 && unit < 4; unit++)
        x /= 1000;
    if (unit == 0)
        snprintf(t.s, sizeof t.s, "%" PRIu64, n);
    else
        snprintf(t.s, sizeof t.s, "%.2f %c", x, units[unit]);
    return t;
}

static struct text dtypes_text(const struct class_sum *c)
{
    struct text t = {""};
    for (uint32_t d = 0; d < DTYPE_N; d++)
        if (c->has[d]) {
            size_t n = strlen(t.s);
            snprintf(t.s + n, sizeof t.s - n, "%s%s", n > 0 ? "+" : "", dtype_name((enum dtype)d));
        }
    return t;
}

static const char *rope_name(enum rope_kind kind)
{
    static const char *const names[] = {
        [ROPE_PLAIN] = "plain", [ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3",
        [ROPE_YARN] = "yarn",   [ROPE_LONG] = "longrope", [ROPE_DIVISORS] = "divisors"};
    return names[kind];
}

static const char *qk_norm_name(enum qk_norm norm)
{
    static const char *const names[] = {[QK_NORM_NONE] = "no q/k norm",
                                        [QK_NORM_HEAD] = "q/k norm per head",
                                        [QK_NORM_FULL] = "q/k norm over all heads",
                                        [QK_NORM_L2_ROPED] = "q/k norm after rotation"};
    return names[norm];
}

static const char *router_name(enum router_score score)
{
    static const char *const names[] = {[SCORE_SOFTMAX] = "softmax over all",
                                        [SCORE_SOFTMAX_CHOSEN] = "softmax over the chosen",
                                        [SCORE_SIGMOID] = "sigmoid",
                                        [SCORE_SPARSEMIXER] = "sparsemixer"};
    return names[score];
}

static void print_attention(const struct hparams *hp)
{
    printf("%-12s %u heads of %u, ", "attention", hp->n_heads, hp->head_dim);
    if (hp->mla.kv_rank > 0)
        printf("latent keys and values of %u and %u rotated", hp->mla.kv_rank, hp->mla.rope);
    else
        printf("%u for keys and values; %s", hp->n_kv_heads, qk_norm_name(hp->qk_norm));
    if (hp->relative_bias.buckets > 0)
        printf("; relative bias of %u buckets", hp->relative_bias.buckets);
    else
        printf("; rope %s, theta %g", rope_name(hp->rope.kind), hp->rope.theta);
    if (hp->rope.kind != ROPE_PLAIN && hp->rope.factor > 1) printf(", factor %g", hp->rope.factor);
    if (hp->mla.kv_rank == 0 && hp->rope_dim < hp->head_dim) printf(", %u of them", hp->rope_dim);
    uint32_t n = 0, window = 0;
    for (uint32_t l = 0; l < hp->n_layers; l++)
        if (hp->sliding_window[l] > 0) n++, window = hp->sliding_window[l];
    if (n > 0) printf("; window %u in %u layer%s", window, n, n == 1 ? "" : "s");
    if (hp->attention_chunk > 0) printf("; in chunks of %u", hp->attention_chunk);
    if (hp->sinks) printf("; sinks");
    if (hp->attention_bias) printf("; biases");
    printf("\n");
}

static void print_experts(const struct hparams *hp)
{
    if (hp->n_experts == 0) return;
    printf("%-12s %u in each layer, %u per token, width %u", "experts", hp->n_experts, hp->top_k,
           hp->expert_width);
    if (hp->shared_width > 0) printf("; and %u for all tokens", hp->shared_width);
    printf("\n%-12s %s", "router", router_name(hp->router.score));
    if (hp->router.n_groups > 1)
        printf(", from %u of %u groups", hp->router.top_groups, hp->router.n_groups);
    printf("; gates %s", hp->router.renormalized ? "renormalized" : "as they are");
    if (hp->router.scale < 1 || hp->router.scale > 1) printf(" times %g", (double)hp->router.scale);
    if (hp->expert_capacity > 0) printf("; at most %u of a prompt's tokens", hp->expert_capacity);
    printf("\n");
}

static void print_model(const struct report *r)
{
    const struct hparams *hp = r->hp;
    printf("%-12s %s\n", "model", model_file_dir(r->file));
    printf("%-12s %s\n", "family", hp->family_name);
    printf("%-12s %u layers (%u with experts", "size", hp->n_layers, r->n_moe_layers);
    if (hp->n_encoder_layers > 0) printf(", %u of an encoder", hp->n_encoder_layers);
    printf("), hidden %u, vocabulary %u, context %u tokens\n", hp->hidden, hp->vocab, hp->ctx_max);
    print_attention(hp);
    print_experts(hp);
    printf("%-12s %s, %s active per token, %s in experts\n", "parameters",
           count_text(r->params.total).s, count_text(r->params.active).s,
           count_text(r->params.experts).s);
    printf("%-12s %s in %u file%s, %u tensors\n", "stored", bytes_text(r->file_bytes).s,
           model_file_n_paths(r->file), model_file_n_paths(r->file) == 1 ? "" : "s",
           model_file_n_tensors(r->file));
    printf("%-12s %s (--quantize=%s)\n", "digest", r->digest, quantize_name(r->cfg->quantize));
}

static void print_classes(const struct report *r)
{
    printf("\n%-18s %8s  %-9s %12s %12s\n", "weights", "matrices", "dtype", "in files",
           "in memory");
    uint64_t memory = 0;
    for (uint32_t i = 0; i < CLASS_N; i++) {
        const struct class_sum *c = &r->classes[i];
        if (c->tensors == 0 && c->memory_bytes == 0) continue;
        printf("%-18s %8u  %-9s %12s %12s%s\n", class_names[i], c->tensors, dtypes_text(c).s,
               bytes_text(c->file_bytes).s, bytes_text(c->memory_bytes).s,
               c->tensors == 0 ? "  (the embedding, packed)" : "");
        memory += c->memory_bytes;
    }
    if (r->unused_tensors > 0)
        printf("%-18s %8u  %-9s %12s %12s\n", "not used", r->unused_tensors, "",
               bytes_text(r->unused_bytes).s, "-");
    printf("%-18s %8u  %-9s %12s %12s\n", "total", model_file_n_tensors(r->file), "",
           bytes_text(r->tensor_bytes).s, bytes_text(memory).s);
    for (uint32_t i = 0; i < r->n_repacks; i++)
        printf("%u tensors in %s (%s) are held as %s (%s): %s\n", r->repacks[i].n_tensors,
               dtype_name(r->repacks[i].from), bytes_text(r->repacks[i].file_bytes).s,
               dtype_name(r->repacks[i].to), bytes_text(r->repacks[i].memory_bytes).s,
               dtype_repack_is_exact(r->repacks[i].from) ? "without loss" : "rounded");
    if (r->kept_tensors > 0)
        printf("%u matrices (%s) keep their type: their inner width is not a multiple of 32\n",
               r->kept_tensors, bytes_text(r->kept_bytes).s);
}

static void print_processes(const struct report *r)
{
    uint64_t cache = r->kv_bytes_per_token * r->hp->ctx_max;
    printf("\n%-18s %12s   %s\n", "process", "weights", "besides");
    printf("%-18s %12s   keys and values: %s per token, %s for a full context\n", "coordinator",
           bytes_text(r->coordinator.total).s, bytes_text(r->kv_bytes_per_token).s,
           bytes_text(cache).s);
    if (r->n_moe_layers == 0) return;
    const uint32_t shown = 16;
    for (uint32_t i = 0; i < r->cfg->nodes && i < shown; i++)
        printf("node %-13u %12s   %u experts\n", i, bytes_text(r->nodes[i].bytes).s,
               r->nodes[i].experts);
    if (r->cfg->nodes > shown) {
        uint64_t most = 0;
        for (uint32_t i = 0; i < r->cfg->nodes; i++)
            if (r->nodes[i].bytes > most) most = r->nodes[i].bytes;
        printf("... %u nodes in all, the largest with %s\n", r->cfg->nodes, bytes_text(most).s);
    }
}

/* The files that a process with the wanted experts reads weights from, and those that describe the model. */
static void each_file(const struct report *r,
                      void (*visit)(const char *path, uint64_t bytes, void *arg), void *arg)
{
    struct buf b = {0};
    buf_printf(&b, "%s/config.json", model_file_dir(r->file));
    if (!b.failed) visit(b.data, 0, arg);
    buf_free(&b);
    if (model_file_index_path(r->file) != NULL) visit(model_file_index_path(r->file), 0, arg);
    for (uint32_t i = 0; i < model_file_n_paths(r->file); i++)
        if (r->file_needed[i]) visit(model_file_path(r->file, i), model_file_size(r->file, i), arg);
}

static void print_file(const char *path, uint64_t bytes, void *arg)
{
    (void)arg;
    printf("%12s  %s\n", bytes > 0 ? bytes_text(bytes).s : "", path);
}

static void print_wanted(const struct report *r)
{
    if (r->cfg->experts == NULL && !r->cfg->files) return;
    struct buf spec = {0};
    experts_spec_print(&r->wanted, r->hp, &spec);
    printf("\nexperts %s: %u of %u, %s in memory\n", spec.len > 0 ? spec.data : "(none)",
           expert_set_count(&r->wanted), r->n_moe_layers * r->hp->n_experts,
           bytes_text(plan_experts_bytes(r->file, r->cfg->quantize, &r->wanted)).s);
    buf_free(&spec);
    if (r->cfg->files) each_file(r, print_file, NULL);
}

/* ---- printing for programs --------------------------------------------------------------------- */

static json_t *number(uint64_t n)
{
    return json_integer((json_int_t)n);
}

static void append_file(const char *path, uint64_t bytes, void *arg)
{
    json_t *entry = json_pack("{s:s}", "path", path);
    if (bytes > 0) json_object_set_new(entry, "bytes", number(bytes));
    json_array_append_new(arg, entry);
}

static json_t *classes_json(const struct report *r)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < CLASS_N; i++) {
        const struct class_sum *c = &r->classes[i];
        json_array_append_new(list, json_pack("{s:s, s:o, s:s, s:o, s:o}", "class", class_names[i],
                                              "tensors", number(c->tensors), "dtype",
                                              dtypes_text(c).s, "file_bytes", number(c->file_bytes),
                                              "memory_bytes", number(c->memory_bytes)));
    }
    return list;
}

static json_t *wanted_json(const struct report *r)
{
    struct buf spec = {0};
    experts_spec_print(&r->wanted, r->hp, &spec);
    json_t *v = json_pack("{s:s, s:o, s:o}", "spec", spec.len > 0 ? spec.data : "", "count",
                          number(expert_set_count(&r->wanted)), "memory_bytes",
                          number(plan_experts_bytes(r->file, r->cfg->quantize, &r->wanted)));
    buf_free(&spec);
    if (r->cfg->files) {
        json_t *list = json_array();
        each_file(r, append_file, list);
        json_object_set_new(v, "files", list);
    }
    return v;
}

static json_t *report_json(const struct report *r)
{
    const struct hparams *hp = r->hp;
    json_t *nodes = json_array();
    for (uint32_t i = 0; i < r->cfg->nodes; i++)
        json_array_append_new(nodes, json_pack("{s:o, s:o}", "experts", number(r->nodes[i].experts),
                                               "weight_bytes", number(r->nodes[i].bytes)));
    json_t *v = json_pack("{s:s, s:s, s:s, s:s}", "model", model_file_dir(r->file), "family",
                          hp->family_name, "digest", r->digest, "quantize",
                          quantize_name(r->cfg->quantize));
    json_t *size = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "layers", number(hp->n_layers),
        "moe_layers", number(r->n_moe_layers), "hidden", number(hp->hidden), "vocab",
        number(hp->vocab), "context", number(hp->ctx_max), "heads", number(hp->n_heads), "kv_heads",
        number(hp->n_kv_heads), "head_dim", number(hp->head_dim), "experts", number(hp->n_experts),
        "experts_per_token", number(hp->top_k), "expert_width", number(hp->expert_width));
    json_object_set_new(v, "size", size);
    json_object_set_new(v, "parameters",
                        json_pack("{s:o, s:o, s:o}", "total", number(r->params.total), "active",
                                  number(r->params.active), "experts", number(r->params.experts)));
    json_object_set_new(v, "file_bytes", number(r->file_bytes));
    json_object_set_new(v, "unused_tensors", number(r->unused_tensors));
    json_object_set_new(v, "unquantized_matrices", number(r->kept_tensors));
    json_object_set_new(v, "classes", classes_json(r));
    json_object_set_new(v, "coordinator",
                        json_pack("{s:o, s:o}", "weight_bytes", number(r->coordinator.total),
                                  "kv_bytes_per_token", number(r->kv_bytes_per_token)));
    json_object_set_new(v, "nodes", nodes);
    json_object_set_new(v, "selected", wanted_json(r));
    return v;
}

static bool print_json(const struct report *r)
{
    json_t *v = report_json(r);
    bool ok = v != NULL && json_dumpf(v, stdout, JSON_INDENT(2)) == 0;
    json_decref(v);
    printf("\n");
    return ok;
}

int cmd_inspect(int argc, char **argv)
{
    struct inspect_cfg cfg = {.nodes = 3};
    struct err why;
    struct model_file *file = NULL;
    argp_err_exit_status = EXIT_USAGE;
    argv = options_with_environment(&argp, argc, argv, &argc);
    if (argv == NULL) return 1;
    argp_parse(&argp, argc, argv, 0, NULL, &cfg);

    int code = 0;
    if (model_file_open(cfg.model, &file, &why) != ERR_OK) {
        fprintf(stderr, "moesaic inspect: %s\n", why.text);
        return EXIT_MODEL;
    }
    struct report r = {.cfg = &cfg, .file = file, .hp = model_file_hparams(file)};
    enum err_code rc = gather(&r, &why);
    if (rc != ERR_OK) {
        fprintf(stderr, "moesaic inspect: %s\n", why.text);
        code = rc == ERR_INVALID ? EXIT_USAGE : 1;
    } else if (cfg.json) {
        code = print_json(&r) ? 0 : 1;
    } else {
        print_model(&r);
        print_classes(&r);
        print_processes(&r);
        print_wanted(&r);
    }
    mem_free(r.used);
    mem_free(r.stored);
    mem_free(r.file_needed);
    mem_free(r.nodes);
    expert_set_deinit(&r.wanted);
    model_file_close(file);
    return code;
}
