#include "coordinator/cli/random_model.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/base/file.h"
#include "common/base/mem.h"

#define CHUNK_WORDS ((size_t)1 << 17) /* of 64 bits: four weights each */
#define PATH_MOST   4200u
#define TEXT_TOKENS 257u /* the end and the 256 bytes: as many as a vocabulary must have */
#define MOST_SIDE   262144u
#define MOST_LAYERS 512u

static const struct random_shape shapes[] = {
    {"olmoe-1b-7b", FAMILY_OLMOE, 16, 16, 2048, 1024, 64, 8, 16, 16, 128, 50304},
    {"mixtral-8x7b", FAMILY_MIXTRAL, 32, 32, 4096, 14336, 8, 2, 32, 8, 128, 32000},
    {"qwen3-30b-a3b", FAMILY_QWEN3_MOE, 48, 48, 2048, 768, 128, 8, 32, 4, 128, 151936},
};

static const struct {
    const char *type, *architecture, *router,
        *expert; /* expert: printf format of layer, expert and name */
    const char *gate, *up, *down;
    enum qk_norm qk_norm;
} families[FAMILY_N] = {
    [FAMILY_MIXTRAL] = {"mixtral", "MixtralForCausalLM", "block_sparse_moe.gate",
                        "block_sparse_moe.experts", "w1", "w3", "w2", QK_NORM_NONE},
    [FAMILY_QWEN3_MOE] = {"qwen3_moe", "Qwen3MoeForCausalLM", "mlp.gate", "mlp.experts",
                          "gate_proj", "up_proj", "down_proj", QK_NORM_HEAD},
    [FAMILY_OLMOE] = {"olmoe", "OlmoeForCausalLM", "mlp.gate", "mlp.experts", "gate_proj",
                      "up_proj", "down_proj", QK_NORM_FULL},
};

/* ---- shapes ----------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t offset;
    uint32_t least, most, step;
} numbers[] = {
#define NUMBER(name, least, most, step)                                                            \
    {                                                                                              \
#name, offsetof(struct random_shape, name), least, most, step                              \
    }
    NUMBER(layers, 1, MOST_LAYERS, 1), NUMBER(hidden, 32, MOST_SIDE, 32),
    NUMBER(width, 32, MOST_SIDE, 32),  NUMBER(experts, 1, 1024, 1),
    NUMBER(top_k, 1, 64, 1),           NUMBER(heads, 1, 1024, 1),
    NUMBER(kv_heads, 1, 1024, 1),      NUMBER(head_dim, 2, 1024, 2),
    NUMBER(vocab, 320, MOST_SIDE, 1),
#undef NUMBER
};

const char *random_shape_names(void)
{
    return "olmoe-1b-7b, mixtral-8x7b, qwen3-30b-a3b";
}

static enum err_code set_number(struct random_shape *s, const char *text, size_t n, struct err *why)
{
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
        size_t len = strlen(numbers[i].name);
        if (n <= len + 1 || strncmp(text, numbers[i].name, len) != 0 || text[len] != '=') continue;
        char *end;
        unsigned long v = strtoul(text + len + 1, &end, 10);
        if (end != text + n || v < numbers[i].least || v > numbers[i].most ||
            v % numbers[i].step != 0)
            return err_set(why, ERR_INVALID, "shape: %.*s must be a multiple of %u from %u to %u",
                           (int)n, text, numbers[i].step, numbers[i].least, numbers[i].most);
        *(uint32_t *)(void *)((char *)s + numbers[i].offset) = (uint32_t)v;
        return ERR_OK;
    }
    return err_set(
        why, ERR_INVALID,
        "shape: '%.*s' is not layers, hidden, width, experts, top_k, heads, kv_heads, head_dim or "
        "vocab = a number",
        (int)n, text);
}

enum err_code random_shape_parse(const char *text, struct random_shape *out, struct err *why)
{
    size_t n = strcspn(text, ","), i = 0;
    while (i < ARRAY_LEN(shapes) &&
           (strlen(shapes[i].name) != n || strncmp(shapes[i].name, text, n) != 0))
        i++;
    if (i == ARRAY_LEN(shapes))
        return err_set(why, ERR_INVALID, "shape '%.*s' is none of: %s", (int)n, text,
                       random_shape_names());
    *out = shapes[i];
    for (text += n; *text == ','; text += n) {
        text++;
        n = strcspn(text, ",");
        enum err_code rc = set_number(out, text, n, why);
        if (rc != ERR_OK) return rc;
    }
    if (out->top_k > out->experts)
        return err_set(why, ERR_INVALID, "shape: top_k %u is more than experts %u", out->top_k,
                       out->experts);
    if (out->heads % out->kv_heads != 0)
        return err_set(why, ERR_INVALID, "shape: heads %u is no multiple of kv_heads %u",
                       out->heads, out->kv_heads);
    return ERR_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------- */

/* What each tensor is told to: the header's text first, then the bytes. */
struct visitor {
    void (*tensor)(void *ctx, const char *name, uint64_t rows,
                   uint64_t columns); /* rows 0: a norm */
    void *ctx;
};

static void visit(const struct visitor *v, uint64_t rows, uint64_t columns, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static void visit(const struct visitor *v, uint64_t rows, uint64_t columns, const char *fmt, ...)
{
    char name[160];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    v->tensor(v->ctx, name, rows, columns);
}

static void visit_layer(const struct random_shape *s, uint32_t l, const struct visitor *v)
{
    const uint64_t q = (uint64_t)s->heads * s->head_dim, kv = (uint64_t)s->kv_heads * s->head_dim;
    const enum qk_norm norm = families[s->family].qk_norm;
    visit(v, 0, s->hidden, "model.layers.%u.input_layernorm.weight", l);
    visit(v, 0, s->hidden, "model.layers.%u.post_attention_layernorm.weight", l);
    visit(v, q, s->hidden, "model.layers.%u.self_attn.q_proj.weight", l);
    visit(v, kv, s->hidden, "model.layers.%u.self_attn.k_proj.weight", l);
    visit(v, kv, s->hidden, "model.layers.%u.self_attn.v_proj.weight", l);
    visit(v, s->hidden, q, "model.layers.%u.self_attn.o_proj.weight", l);
    if (norm != QK_NORM_NONE) {
        visit(v, 0, norm == QK_NORM_FULL ? q : s->head_dim,
              "model.layers.%u.self_attn.q_norm.weight", l);
        visit(v, 0, norm == QK_NORM_FULL ? kv : s->head_dim,
              "model.layers.%u.self_attn.k_norm.weight", l);
    }
    visit(v, s->experts, s->hidden, "model.layers.%u.%s.weight", l, families[s->family].router);
    for (uint32_t e = 0; e < s->experts; e++) {
        const char *experts = families[s->family].expert;
        visit(v, s->width, s->hidden, "model.layers.%u.%s.%u.%s.weight", l, experts, e,
              families[s->family].gate);
        visit(v, s->width, s->hidden, "model.layers.%u.%s.%u.%s.weight", l, experts, e,
              families[s->family].up);
        visit(v, s->hidden, s->width, "model.layers.%u.%s.%u.%s.weight", l, experts, e,
              families[s->family].down);
    }
}

static void visit_all(const struct random_shape *s, const struct visitor *v)
{
    visit(v, s->vocab, s->hidden, "model.embed_tokens.weight");
    visit(v, 0, s->hidden, "model.norm.weight");
    visit(v, s->vocab, s->hidden, "lm_head.weight");
    for (uint32_t l = 0; l < s->layers; l++)
        visit_layer(s, l, v);
}

static uint64_t n_weights(uint64_t rows, uint64_t columns)
{
    return (rows == 0 ? 1 : rows) * columns;
}

static void add_up(void *ctx, const char *name, uint64_t rows, uint64_t columns)
{
    (void)name;
    *(uint64_t *)ctx += 2 * n_weights(rows, columns);
}

uint64_t random_model_bytes(const struct random_shape *s)
{
    uint64_t bytes = 0;
    visit_all(s, &(struct visitor){add_up, &bytes});
    return bytes;
}

struct header {
    struct buf text;
    uint64_t at;
};

static void describe(void *ctx, const char *name, uint64_t rows, uint64_t columns)
{
    struct header *h = ctx;
    char shape[64];
    if (rows == 0)
        snprintf(shape, sizeof shape, "%" PRIu64, columns);
    else
        snprintf(shape, sizeof shape, "%" PRIu64 ",%" PRIu64, rows, columns);
    uint64_t end = h->at + 2 * n_weights(rows, columns);
    buf_printf(&h->text,
               "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%" PRIu64 ",%" PRIu64
               "]}",
               h->at == 0 ? "{" : ",", name, shape, h->at, end);
    h->at = end;
}

struct weights {
    FILE *file;
    uint64_t *chunk; /* [CHUNK_WORDS] */
    uint64_t state;
    bool failed;
};

/* bf16 of magnitude 2^-7 to 2^-5 and either sign; norms are 1. */
static void put_weights(void *ctx, const char *name, uint64_t rows, uint64_t columns)
{
    (void)name;
    struct weights *w = ctx;
    for (uint64_t left = n_weights(rows, columns); left > 0 && !w->failed;) {
        size_t n = left < 4 * CHUNK_WORDS ? (size_t)left : 4 * CHUNK_WORDS;
        for (size_t i = 0; i < (n + 3) / 4; i++) {
            uint64_t x = w->state += 0x9e3779b97f4a7c15u; /* SplitMix64 */
            x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
            x = (x ^ x >> 27) * 0x94d049bb133111ebu;
            w->chunk[i] =
                rows == 0 ? 0x3f803f803f803f80u : (x & 0x80ff80ff80ff80ffu) | 0x3c003c003c003c00u;
        }
        w->failed = fwrite(w->chunk, 2, n, w->file) != n;
        left -= n;
    }
}

static enum err_code write_weights(const char *path, const struct random_shape *s, struct err *why)
{
    struct header h = {0};
    visit_all(s, &(struct visitor){describe, &h});
    buf_putc(&h.text, '}');
    while (h.text.len % 8 != 0)
        buf_putc(&h.text, ' ');
    struct weights w = {.chunk = mem_alloc(CHUNK_WORDS * sizeof *w.chunk), .state = 1};
    enum err_code rc = h.text.failed || w.chunk == NULL ? err_nomem(why, "a random model") : ERR_OK;
    if (rc == ERR_OK && (w.file = fopen(path, "wb")) == NULL)
        rc = err_set(why, ERR_IO, "%s: %s", path, strerror(errno));
    if (rc == ERR_OK) {
        uint64_t n = h.text.len; /* little endian, as the machines that this runs on */
        w.failed = fwrite(&n, sizeof n, 1, w.file) != 1 ||
                   fwrite(h.text.data, 1, h.text.len, w.file) != h.text.len;
        visit_all(s, &(struct visitor){put_weights, &w});
        if (fclose(w.file) != 0 || w.failed)
            rc = err_set(why, ERR_IO, "%s: %s; it takes %.1f GiB", path, strerror(errno),
                         (double)random_model_bytes(s) / (1u << 30));
    }
    mem_free(w.chunk);
    buf_free(&h.text);
    return rc;
}

/* ---- the small files -------------------------------------------------------------------------- */

static void put_config(const struct random_shape *s, struct buf *b)
{
    buf_printf(
        b,
        "{\"architectures\": [\"%s\"], \"model_type\": \"%s\", \"vocab_size\": %u, \"hidden_size\": %u,\n"
        " \"num_hidden_layers\": %u, \"num_attention_heads\": %u, \"num_key_value_heads\": %u, \"head_dim\": %u,\n"
        " \"intermediate_size\": %u, \"num_experts_per_tok\": %u, \"%s\": %u, \"hidden_act\": \"silu\",\n"
        " \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"max_position_embeddings\": 4096,\n"
        " \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\", \"bos_token_id\": null, \"eos_token_id\": 0",
        families[s->family].architecture, families[s->family].type, s->vocab, s->hidden, s->layers,
        s->heads, s->kv_heads, s->head_dim, s->width, s->top_k,
        s->family == FAMILY_MIXTRAL ? "num_local_experts" : "num_experts", s->experts);
    if (s->family == FAMILY_OLMOE)
        buf_puts(b, ",\n \"norm_topk_prob\": false, \"clip_qkv\": null, \"attention_bias\": false");
    if (s->family == FAMILY_QWEN3_MOE)
        buf_printf(
            b,
            ",\n \"moe_intermediate_size\": %u, \"norm_topk_prob\": true, \"decoder_sparse_step\": 1,\n"
            " \"mlp_only_layers\": [], \"attention_bias\": false, \"use_sliding_window\": false",
            s->width);
    buf_puts(b, "}\n");
}

/* Bytes as GPT-2 writes them: the printable ones of Latin-1 as they are, the others from 256 on. */
static uint32_t byte_letter(uint32_t byte)
{
    uint32_t others = 0;
    for (uint32_t i = 0; i <= byte; i++) {
        bool printable = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        if (i == byte && printable) return byte;
        others += !printable;
    }
    return 256 + others - 1;
}

static void put_tokenizer(const struct random_shape *s, struct buf *b)
{
    buf_puts(
        b,
        "{\"version\": \"1.0\", \"added_tokens\": [{\"id\": 0, \"content\": \"<|end|>\", \"single_word\": false, "
        "\"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true}],\n \"normalizer\": null, "
        "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
        "\"use_regex\": true},\n \"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\", "
        "\"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},\n"
        " \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"byte_fallback\": false, "
        "\"merges\": [], \"vocab\": {\"<|end|>\": 0");
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t letter = byte_letter(i);
        buf_puts(b, ",\"");
        if (letter == '"' || letter == '\\') buf_putc(b, '\\');
        buf_put_utf8(b, letter);
        buf_printf(b, "\":%u", i + 1);
    }
    for (uint32_t id = TEXT_TOKENS; id < s->vocab; id++)
        buf_printf(b, ",\"\xc4\xa0t%u\":%u", id, id); /* a space, t and its number */
    buf_puts(b, "}}}\n");
}

static enum err_code write_text(const char *folder, const char *name, struct buf *b,
                                struct err *why)
{
    char path[PATH_MOST];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    enum err_code rc = b->failed ? err_nomem(why, name) : file_replace(path, b->data, b->len, why);
    buf_free(b);
    return rc;
}

enum err_code random_model_write(const char *folder, const struct random_shape *s, struct err *why)
{
    char path[PATH_MOST];
    if (strlen(folder) > PATH_MOST - 64)
        return err_set(why, ERR_INVALID, "%.100s...: the path is too long", folder);
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        return err_set(why, ERR_IO, "%s: %s", folder, strerror(errno));
    struct buf config = {0}, tokenizer = {0};
    put_config(s, &config);
    put_tokenizer(s, &tokenizer);
    enum err_code rc = write_text(folder, "config.json", &config, why);
    enum err_code rc2 = write_text(folder, "tokenizer.json", &tokenizer, why);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    if (rc == ERR_OK) rc = rc2;
    return rc == ERR_OK ? write_weights(path, s, why) : rc;
}

void random_model_remove(const char *folder)
{
    static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors"};
    char path[PATH_MOST];
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}
