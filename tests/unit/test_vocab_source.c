/* Tokenizers from the metadata of GGUF files: published vocabularies against llama.cpp's ids and, said again in GGUF's
 * form, against the official library's; the tiny models' files; sources that are wrong. The reader of GGUF here is the
 * test's own: it trusts its files. */
// links: text
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/vocab_source.h"

/* ---- Where things are --------------------------------------------------------------------------- */

static const char *shared(const char *name)
{
    static char path[4][4096];
    static unsigned next;
    char *p = path[next++ % 4];
    const char *root = getenv("MOESAIC_SHARED");
    snprintf(p, sizeof path[0], "%s/%s", root != NULL ? root : PROJECT_ROOT "/../shared", name);
    if (access(p, R_OK) == 0) return p;
    const char *required = getenv("MOESAIC_REQUIRE_SHARED");
    if (required != NULL && strcmp(required, "1") == 0) cr_assert_fail("%s is missing", p);
    cr_skip_test("%s is missing", p);
    return NULL;
}

static struct buf slurp(const char *path)
{
    char command[4200];
    size_t n = strlen(path);
    bool xz = n > 3 && strcmp(path + n - 3, ".xz") == 0;
    snprintf(command, sizeof command, "%s '%s'", xz ? "xz -dc" : "cat", path);
    FILE *f = popen(command, "r");
    cr_assert_not_null(f);
    struct buf out = {0};
    char block[65536];
    for (size_t k; (k = fread(block, 1, sizeof block, f)) > 0;)
        buf_append(&out, block, k);
    cr_assert_eq(pclose(f), 0, "%s", command);
    return out;
}

static json_t *read_json(const char *path)
{
    struct buf text = slurp(path);
    json_t *v;
    struct err why;
    cr_assert_eq(json_parse(text.data, text.len, 64, &v, &why), ERR_OK, "%s: %s", path, why.text);
    buf_free(&text);
    return v;
}

/* ---- A source and what it borrows from ---------------------------------------------------------- */

struct owned {
    struct vocab_source s;
    struct buf bytes, more;
    json_t *json;
    struct text_view *tokens, *merges;
    int32_t *types;
    float *scores;
    size_t cap; /* of the three, where they grow */
};

static void owned_free(struct owned *o)
{
    buf_free(&o->bytes);
    buf_free(&o->more);
    json_decref(o->json);
    free(o->tokens);
    free(o->merges);
    free(o->types);
    free(o->scores);
}

struct reader {
    const char *at;
};

static uint64_t take(struct reader *r, size_t n)
{
    uint64_t v = 0;
    memcpy(&v, r->at, n);
    r->at += n;
    return v;
}

static struct text_view take_text(struct reader *r)
{
    size_t n = take(r, 8);
    struct text_view v = {r->at, n};
    r->at += n;
    return v;
}

static size_t size_of(uint64_t type)
{
    static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return sizes[type];
}

static void take_array(struct owned *o, struct text_view key, struct reader *r)
{
    uint64_t type = take(r, 4), n = take(r, 8);
    if (type == 8) {
        struct text_view *list = calloc(n + 1, sizeof *list);
        for (size_t i = 0; i < n; i++)
            list[i] = take_text(r);
        if (text_view_is(key, "tokenizer.ggml.tokens")) {
            o->tokens = list;
            o->s.n_tokens = n;
        } else if (text_view_is(key, "tokenizer.ggml.merges")) {
            o->merges = list;
            o->s.n_merges = n;
        } else {
            free(list);
        }
        return;
    }
    size_t bytes = n * size_of(type);
    if (text_view_is(key, "tokenizer.ggml.token_type")) {
        cr_assert_eq(type, 5);
        o->types = malloc(bytes);
        memcpy(o->types, r->at, bytes);
        o->s.n_types = n;
    } else if (text_view_is(key, "tokenizer.ggml.scores")) {
        cr_assert_eq(type, 6);
        o->scores = malloc(bytes);
        memcpy(o->scores, r->at, bytes);
        o->s.n_scores = n;
    }
    r->at += bytes;
}

static void take_key(struct owned *o, struct reader *r)
{
    struct text_view key = take_text(r);
    uint64_t type = take(r, 4);
    struct {
        const char *key;
        struct text_view *out;
    } texts[] = {{"general.architecture", &o->s.architecture},
                 {"tokenizer.ggml.model", &o->s.model},
                 {"tokenizer.ggml.pre", &o->s.pre},
                 {"tokenizer.chat_template", &o->s.chat_template}};
    struct {
        const char *key;
        int64_t *out;
    } ids[] = {{"tokenizer.ggml.bos_token_id", &o->s.bos},
               {"tokenizer.ggml.eos_token_id", &o->s.eos},
               {"tokenizer.ggml.eot_token_id", &o->s.eot},
               {"tokenizer.ggml.eom_token_id", &o->s.eom},
               {"tokenizer.ggml.unknown_token_id", &o->s.unknown},
               {"tokenizer.ggml.padding_token_id", &o->s.padding}};
    struct {
        const char *key;
        int *out;
    } flags[] = {{"tokenizer.ggml.add_bos_token", &o->s.add_bos},
                 {"tokenizer.ggml.add_eos_token", &o->s.add_eos},
                 {"tokenizer.ggml.add_space_prefix", &o->s.add_space_prefix}};
    if (type == 9) {
        take_array(o, key, r);
    } else if (type == 8) {
        struct text_view v = take_text(r);
        for (size_t i = 0; i < ARRAY_LEN(texts); i++)
            if (text_view_is(key, texts[i].key)) *texts[i].out = v;
    } else {
        uint64_t v = take(r, size_of(type));
        for (size_t i = 0; i < ARRAY_LEN(ids); i++)
            if (text_view_is(key, ids[i].key)) *ids[i].out = (int64_t)v;
        for (size_t i = 0; i < ARRAY_LEN(flags); i++)
            if (text_view_is(key, flags[i].key)) *flags[i].out = v != 0;
    }
}

static struct owned read_gguf(const char *path)
{
    struct owned o = {.s = VOCAB_SOURCE_NONE};
    o.s.name = "the.gguf";
    o.bytes = slurp(path);
    struct reader r = {o.bytes.data};
    cr_assert_eq(memcmp(r.at, "GGUF", 4), 0);
    r.at += 16;
    for (uint64_t n = take(&r, 8); n > 0; n--)
        take_key(&o, &r);
    o.s.tokens = o.tokens;
    o.s.types = o.types;
    o.s.scores = o.scores;
    o.s.merges = o.merges;
    return o;
}

/* ---- A tokenizer.json in GGUF's form ------------------------------------------------------------ */

static void grow_tokens(struct owned *o, size_t id)
{
    if (id < o->s.n_tokens) return;
    if (id >= o->cap) {
        o->cap = 2 * id + 64;
        o->tokens = realloc(o->tokens, o->cap * sizeof *o->tokens);
        o->types = realloc(o->types, o->cap * sizeof *o->types);
        o->scores = realloc(o->scores, o->cap * sizeof *o->scores);
    }
    for (size_t i = o->s.n_tokens; i <= id; i++) {
        o->tokens[i] = (struct text_view){NULL, 0};
        o->types[i] = VOCAB_TYPE_NORMAL;
        o->scores[i] = 0;
    }
    o->s.n_tokens = o->s.n_types = id + 1;
}

static struct text_view view_of(const json_t *text)
{
    return (struct text_view){json_string_value(text), json_string_length(text)};
}

static void set_token(struct owned *o, size_t id, struct text_view text, int type, double score)
{
    grow_tokens(o, id);
    o->tokens[id] = text;
    o->types[id] = type;
    o->scores[id] = (float)score;
}

/* Merges are joined to one buffer first, as it may move. */
static void set_merges(struct owned *o, const json_t *list)
{
    size_t n = json_array_size(list), off = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(list, i);
        if (json_is_string(m))
            buf_puts(&o->more, json_string_value(m));
        else
            buf_printf(&o->more, "%s %s", json_string_value(json_array_get(m, 0)),
                       json_string_value(json_array_get(m, 1)));
        buf_putc(&o->more, '\n');
    }
    o->merges = calloc(n, sizeof *o->merges);
    for (size_t i = 0; i < n; i++) {
        size_t end =
            (size_t)((char *)memchr(o->more.data + off, '\n', o->more.len - off) - o->more.data);
        o->merges[i] = (struct text_view){o->more.data + off, end - off};
        off = end + 1;
    }
    o->s.n_merges = n;
}

/* The library's merges are the tokens in the order of their scores: take the numbers back from there. */
static void set_scores(struct owned *o, const json_t *merges, const json_t *vocab)
{
    for (size_t i = json_array_size(merges); i-- > 0;) {
        char whole[400];
        snprintf(whole, sizeof whole, "%s", json_string_value(json_array_get(merges, i)));
        char *space = strchr(whole, ' ');
        memmove(space, space + 1, strlen(space));
        o->scores[json_integer_value(json_object_get(vocab, whole))] = -(float)i;
    }
}

static int base64_value(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = strchr(digits, c);
    cr_assert(at != NULL && c != '\0');
    return (int)(at - digits);
}

static void set_charsmap(struct owned *o, const char *text)
{
    unsigned bits = 0;
    for (size_t i = 0; text[i] != '\0' && text[i] != '='; i++) {
        bits = bits << 6 | (unsigned)base64_value(text[i]);
        if (i % 4 != 0) buf_putc(&o->more, (char)(bits >> (6 - 2 * (i % 4))));
    }
    o->s.charsmap = (struct text_view){o->more.data, o->more.len};
}

static struct owned from_tokenizer_json(const char *path, const char *model, const char *pre)
{
    struct owned o = {.s = VOCAB_SOURCE_NONE};
    o.s.name = "the source";
    o.s.model = (struct text_view){model, strlen(model)};
    o.s.pre = (struct text_view){pre, pre == NULL ? 0 : strlen(pre)};
    o.json = read_json(path);
    json_t *m = json_object_get(o.json, "model"), *vocab = json_object_get(m, "vocab"), *value;
    size_t i;
    const char *text;
    if (json_is_array(vocab)) {
        json_array_foreach(vocab, i, value)
        {
            set_token(&o, i, view_of(json_array_get(value, 0)), VOCAB_TYPE_NORMAL,
                      json_number_value(json_array_get(value, 1)));
        }
        o.s.unknown = json_integer_value(json_object_get(m, "unk_id"));
        const json_t *steps = json_object_get(json_object_get(o.json, "normalizer"), "normalizers");
        set_charsmap(&o, json_string_value(
                             json_object_get(json_array_get(steps, 0), "precompiled_charsmap")));
    } else {
        size_t n;
        json_object_keylen_foreach(vocab, text, n, value)
        {
            size_t id = (size_t)json_integer_value(value);
            bool byte = strcmp(model, "llama") == 0 && n == 6 && strncmp(text, "<0x", 3) == 0;
            set_token(&o, id, (struct text_view){text, n},
                      byte ? VOCAB_TYPE_BYTE : VOCAB_TYPE_NORMAL, -1e6);
        }
        if (strcmp(model, "gpt2") == 0)
            set_merges(&o, json_object_get(m, "merges"));
        else
            set_scores(&o, json_object_get(m, "merges"), vocab);
    }
    json_array_foreach(json_object_get(o.json, "added_tokens"), i, value)
    {
        bool special = json_is_true(json_object_get(value, "special"));
        set_token(&o, (size_t)json_integer_value(json_object_get(value, "id")),
                  view_of(json_object_get(value, "content")),
                  special ? VOCAB_TYPE_CONTROL : VOCAB_TYPE_USER, 0);
    }
    if (strcmp(model, "gpt2") != 0) o.s.n_scores = o.s.n_tokens;
    for (i = 0; i < o.s.n_tokens; i++) /* what no token has */
        if (o.tokens[i].data == NULL) {
            static char names[4096][24];
            static size_t n;
            cr_assert_lt(n, 4096);
            int k = snprintf(names[n], sizeof names[n], "[PAD%zu]", i);
            o.tokens[i] = (struct text_view){names[n++], (size_t)k};
            o.types[i] = VOCAB_TYPE_UNUSED;
        }
    o.s.tokens = o.tokens;
    o.s.types = o.types;
    o.s.scores = o.scores;
    o.s.merges = o.merges;
    return o;
}

/* ---- Comparing ---------------------------------------------------------------------------------- */

static void read_ids(const json_t *array, struct ids *out)
{
    out->len = 0;
    for (size_t i = 0; i < json_array_size(array); i++)
        cr_assert(ids_push(out, (int32_t)json_integer_value(json_array_get(array, i))));
}

static bool same_ids(const struct ids *a, const struct ids *b)
{
    return a->len == b->len &&
           (a->len == 0 || memcmp(a->data, b->data, a->len * sizeof *a->data) == 0);
}

static void read_text(const json_t *c, struct buf *out)
{
    const json_t *text = json_object_get(c, "text");
    const char *hex = json_string_value(json_object_get(c, "bytes_hex"));
    buf_clear(out);
    if (text != NULL) buf_append(out, json_string_value(text), json_string_length(text));
    for (; hex != NULL && *hex != '\0'; hex += 2) {
        unsigned byte;
        cr_assert_eq(sscanf(hex, "%2x", &byte), 1);
        buf_putc(out, (char)byte);
    }
}

static struct tokenizer *open_source(const struct owned *o)
{
    struct tokenizer *t = NULL;
    struct err why;
    cr_assert_eq(tokenizer_open_vocab(&o->s, &t, &why), ERR_OK, "%s", why.text);
    return t;
}

/* Every case's ids without what is put around them, and the text back. */
static void check_cases(const struct tokenizer *t, const char *what, const json_t *cases)
{
    struct ids want = {0}, got = {0};
    struct buf text = {0};
    struct err why;
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i), *decoded = json_object_get(c, "decoded");
        if (json_is_true(json_object_get(c, "add_special_tokens"))) continue;
        n++;
        read_text(c, &text);
        read_ids(json_object_get(c, "ids"), &want);
        cr_assert_eq(tokenizer_encode(t, text.data ? text.data : "", text.len, TOKENIZER_ADD_NONE,
                                      TOKENIZER_PARSE_SPECIAL, &got, &why),
                     ERR_OK, "%s, case %zu: %s", what, i, why.text);
        cr_expect(same_ids(&want, &got), "%s, case %zu: ids of '%s' differ (%zu, should be %zu)",
                  what, i, text.len ? text.data : "", got.len, want.len);
        if (decoded == NULL) continue;
        buf_clear(&text);
        cr_assert_eq(tokenizer_decode(t, want.data, want.len, false, &text, &why), ERR_OK);
        cr_expect(text.len == json_string_length(decoded) &&
                      memcmp(text.len ? text.data : "", json_string_value(decoded), text.len) == 0,
                  "%s, case %zu: decoded '%s', should be '%s'", what, i, text.len ? text.data : "",
                  json_string_value(decoded));
    }
    cr_expect_gt(n, 40);
    ids_free(&want);
    ids_free(&got);
    buf_free(&text);
}

/* ---- Published files ---------------------------------------------------------------------------- */

Test(vocab_source, published_gguf_vocabularies_give_the_ids_of_llama_cpp)
{
    static const char *const names[] = {"refact", "phi-3", "llama-spm", "deepseek-llm"};
    json_t *vectors = read_json(shared("tokenizers/gguf/vectors.json"));
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char path[200];
        snprintf(path, sizeof path, "tokenizers/gguf/ggml-vocab-%s.gguf.xz", names[i]);
        struct owned o = read_gguf(shared(path));
        struct tokenizer *t = open_source(&o);
        check_cases(t, names[i], json_object_get(vectors, names[i]));
        tokenizer_close(t);
        owned_free(&o);
    }
    json_decref(vectors);
}

static void check_same(const char *folder, const char *model, const char *pre)
{
    char path[200], expected[200];
    snprintf(path, sizeof path, "tokenizers/%s/tokenizer.json.xz", folder);
    snprintf(expected, sizeof expected, "tokenizers/%s/expected.json", folder);
    struct owned o = from_tokenizer_json(shared(path), model, pre);
    struct tokenizer *t = open_source(&o);
    json_t *cases = read_json(shared(expected));
    check_cases(t, folder, cases);
    json_decref(cases);
    tokenizer_close(t);
    owned_free(&o);
}

Test(vocab_source, qwen2_cuts_as_the_official_library)
{
    check_same("qwen3", "gpt2", "qwen2");
}
Test(vocab_source, llama_bpe_cuts_as_the_official_library)
{
    check_same("llama3", "gpt2", "llama-bpe");
}
Test(vocab_source, gpt_4o_cuts_as_the_official_library)
{
    check_same("gpt_oss", "gpt2", "gpt-4o");
}
Test(vocab_source, deepseek_llm_cuts_as_the_official_library)
{
    check_same("deepseek_v2", "gpt2", "deepseek-llm");
}
Test(vocab_source, deepseek_v3_cuts_as_the_official_library)
{
    check_same("deepseek_v3", "gpt2", "deepseek-v3");
}
Test(vocab_source, olmo_cuts_as_the_official_library)
{
    check_same("olmoe", "gpt2", "olmo");
}
Test(vocab_source, scores_merge_as_the_official_librarys_ranks)
{
    check_same("mixtral", "llama", NULL);
}
Test(vocab_source, t5_equals_the_official_library)
{
    check_same("t5", "t5", NULL);
}

/* ---- The tiny models ---------------------------------------------------------------------------- */

static const struct {
    const char *file, *checkpoint;
} tiny[] = {
    {"tiny-mixtral-f32", "tiny-mixtral"},
    {"tiny-mixtral-f16-v2", "tiny-mixtral"},
    {"tiny-mixtral-f16-split-00001-of-00002", "tiny-mixtral"},
    {"tiny-qwen3_moe-f32", "tiny-qwen3_moe"},
    {"tiny-deepseek-f16", "tiny-deepseek"},
    {"tiny-deepseek_v2-f32", "tiny-deepseek_v2"},
    {"tiny-deepseek_v2-lite-f16", "tiny-deepseek_v2-lite"},
    {"tiny-deepseek_v3-f32", "tiny-deepseek_v3"},
    {"tiny-gpt_oss-f32", "tiny-gpt_oss"},
    {"tiny-glm4_moe-f16", "tiny-glm4_moe"},
    {"tiny-granitemoe-f16", "tiny-granitemoe"},
    {"tiny-llama-f16", "tiny-llama"},
    {"tiny-olmoe-f16", "tiny-olmoe"},
    {"tiny-phimoe-f16", "tiny-phimoe"},
    {"tiny-qwen2_moe-f16", "tiny-qwen2_moe"},
    {"tiny-qwen3-f16", "tiny-qwen3"},
};

static struct owned read_tiny(size_t i)
{
    char path[200];
    snprintf(path, sizeof path, "models/gguf/%s.gguf", tiny[i].file);
    return read_gguf(shared(path));
}

/* Each prompt's ids are the beginning of its text's; a lone one is its text's last. */
static void check_prompts(const struct tokenizer *t, const char *what, const json_t *expected)
{
    const json_t *prompts = json_object_get(expected, "prompts");
    struct ids want = {0}, got = {0};
    struct err why;
    cr_expect_gt(json_array_size(prompts), 2);
    for (size_t i = 0; i < json_array_size(prompts); i++) {
        const json_t *p = json_array_get(prompts, i), *text = json_object_get(p, "text");
        read_ids(json_object_get(p, "ids"), &want);
        cr_assert_eq(tokenizer_encode(t, json_string_value(text), json_string_length(text),
                                      want.len == 1 ? TOKENIZER_ADD_NONE : TOKENIZER_ADD_CONFIG,
                                      TOKENIZER_PARSE_SPECIAL, &got, &why),
                     ERR_OK, "%s", why.text);
        cr_assert_geq(got.len, want.len, "%s: prompt %zu", what, i);
        if (want.len == 1) got.data[0] = got.data[got.len - 1];
        got.len = want.len;
        cr_expect(same_ids(&want, &got), "%s: ids of prompt %zu differ", what, i);
    }
    ids_free(&want);
    ids_free(&got);
}

/* The same ids, with the same things around them, from the file and from the folder that it was made of. */
static void compare(const struct tokenizer *a, const struct tokenizer *b, const char *what)
{
    static const char *const texts[] = {
        "The king  asked\n\nfor 1234 \xC3\xA9\x65\xCC\x81 \xE4\xB8\xAD\xE6\x96\x87 waters!",
        "  it's <|im_start|>user\n <s>x</s> <|user|>\n Hi<|end|>\n\n<unk> <think>\n", "", " ",
        "\xFF\xFE \xF0\x9F\x98\x80"};
    struct ids x = {0}, y = {0};
    struct err why;
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        for (int special = 0; special < 2; special++) {
            size_t n = strlen(texts[i]);
            cr_assert_eq(tokenizer_encode(a, texts[i], n, TOKENIZER_ADD_CONFIG,
                                          (enum tokenizer_special)special, &x, &why),
                         ERR_OK, "%s", why.text);
            cr_assert_eq(tokenizer_encode(b, texts[i], n, TOKENIZER_ADD_CONFIG,
                                          (enum tokenizer_special)special, &y, &why),
                         ERR_OK, "%s", why.text);
            cr_expect(same_ids(&x, &y), "%s: text %zu, special %d", what, i, special);
        }
    ids_free(&x);
    ids_free(&y);
}

Test(vocab_source, tiny_models_have_the_ids_of_their_checkpoints)
{
    for (size_t i = 0; i < ARRAY_LEN(tiny); i++) {
        char path[200];
        struct owned o = read_tiny(i);
        struct tokenizer *t = open_source(&o), *folder = NULL;
        struct err why;
        snprintf(path, sizeof path, "models/%s/expected.json", tiny[i].checkpoint);
        json_t *expected = read_json(shared(path));
        check_prompts(t, tiny[i].file, expected);
        snprintf(path, sizeof path, "models/%s", tiny[i].checkpoint);
        cr_assert_eq(tokenizer_open(shared(path), &folder, &why), ERR_OK, "%s", why.text);
        compare(t, folder, tiny[i].file);
        json_decref(expected);
        tokenizer_close(folder);
        tokenizer_close(t);
        owned_free(&o);
    }
}

Test(vocab_source, the_tiny_models_templates_render_as_their_folders)
{
    json_t *messages = json_loads("[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\","
                                  "\"content\":\"Ho\"},{\"role\":\"user\",\"content\":\"So?\"}]",
                                  0, NULL);
    size_t n = 0;
    for (size_t i = 0; i < ARRAY_LEN(tiny); i++) {
        char path[200];
        struct owned o = read_tiny(i);
        struct chat_template *a = NULL, *b = NULL;
        struct err why;
        struct buf x = {0}, y = {0};
        struct chat_template_input in = {
            .messages = messages, .add_generation_prompt = true, .now = {.tm_mday = 1}};
        snprintf(path, sizeof path, "models/%s", tiny[i].checkpoint);
        enum err_code rc = chat_template_open_vocab(&o.s, &a, &why);
        cr_assert_eq(chat_template_open(shared(path), &b, &why), rc, "%s", tiny[i].file);
        if (rc == ERR_OK) {
            cr_assert_eq(chat_template_render(a, &in, &x, NULL, &why), ERR_OK, "%s", why.text);
            cr_assert_eq(chat_template_render(b, &in, &y, NULL, &why), ERR_OK, "%s", why.text);
            cr_expect_str_eq(x.data, y.data, "%s", tiny[i].file);
            n++;
        } else {
            cr_expect_eq(rc, ERR_NOT_FOUND);
        }
        buf_free(&x);
        buf_free(&y);
        chat_template_close(a);
        chat_template_close(b);
        owned_free(&o);
    }
    cr_expect_gt(n, 8);
    json_decref(messages);
}

/* ---- A small source of our own ------------------------------------------------------------------ */

#define VIEW(s)                                                                                    \
    {                                                                                              \
        s, sizeof s - 1                                                                            \
    }

static const struct text_view small_tokens[] = {VIEW("<unk>"),
                                                VIEW("<s>"),
                                                VIEW("</s>"),
                                                VIEW("\xE2\x96\x81"),
                                                VIEW("a"),
                                                VIEW("b"),
                                                VIEW("ab"),
                                                VIEW("<mark>"),
                                                VIEW("<0x63>"),
                                                VIEW("\xE2\x96\x81"
                                                     "a"),
                                                VIEW("ba"),
                                                VIEW("spare"),
                                                VIEW("<|im_end|>"),
                                                VIEW("[PAD13]")};
static const int32_t small_types[] = {2, 3, 3, 1, 1, 1, 1, 4, 6, 1, 1, 5, 3, 5};
static const float small_scores[] = {0, 0, 0, -1, -2, -3, -4, 0, 0, -5, -4, 0, 0, -1000};

static struct vocab_source small_source(void)
{
    struct vocab_source s = VOCAB_SOURCE_NONE;
    s.name = "small.gguf";
    s.model = (struct text_view)VIEW("llama");
    s.tokens = small_tokens;
    s.types = small_types;
    s.scores = small_scores;
    s.n_tokens = s.n_types = s.n_scores = ARRAY_LEN(small_tokens);
    s.bos = 1;
    s.eos = 2;
    s.unknown = 0;
    return s;
}

static void expect_ids(const struct vocab_source *s, const char *text, enum tokenizer_add add,
                       enum tokenizer_special special, size_t n, const int32_t *want)
{
    struct tokenizer *t = NULL;
    struct ids got = {0}, ids = {0};
    struct err why;
    cr_assert_eq(tokenizer_open_vocab(s, &t, &why), ERR_OK, "%s", why.text);
    cr_assert(ids_append(&ids, want, n));
    cr_assert_eq(tokenizer_encode(t, text, strlen(text), add, special, &got, &why), ERR_OK, "%s",
                 why.text);
    cr_expect(same_ids(&ids, &got), "ids of '%s' differ (%zu, should be %zu)", text, got.len, n);
    cr_expect_eq(tokenizer_vocab_size(t), 13, "the padding at the end is no token");
    ids_free(&got);
    ids_free(&ids);
    tokenizer_close(t);
}
#define EXPECT_IDS(s, text, add, special, ...)                                                     \
    expect_ids(s, text, add, special, sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t),            \
               (int32_t[]){__VA_ARGS__})

Test(vocab_source, the_highest_score_merges_first_and_leftmost_among_equals)
{
    struct vocab_source s = small_source();
    s.add_space_prefix = VOCAB_NO;
    /* "ab" and "ba" score the same: from the left. */
    EXPECT_IDS(&s, "aba", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 6, 4);
    EXPECT_IDS(&s, "baba", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 10, 10);
    EXPECT_IDS(&s, "abc", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 6, 8);
    EXPECT_IDS(&s, "axyb", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 4, 0, 5);
    s.add_space_prefix = VOCAB_UNSAID; /* then there is one, also after a token */
    EXPECT_IDS(&s, "a<mark>ab", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 9, 7, 3, 6);
}

Test(vocab_source, control_tokens_come_from_their_types_and_users_cannot_spell_them)
{
    struct vocab_source s = small_source();
    s.add_space_prefix = VOCAB_NO;
    EXPECT_IDS(&s, "a</s><mark>", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 4, 2, 7);
    EXPECT_IDS(&s, "a</s><mark>", TOKENIZER_ADD_NONE, TOKENIZER_NO_SPECIAL, 4, 0, 4, 0);
    EXPECT_IDS(&s, "spare", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 0, 4, 0);
    s.n_types = 0; /* no types: the ids that have names; <0x63> is still a byte's */
    s.n_tokens = s.n_scores = 13;
    EXPECT_IDS(&s, "a</s>c", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 4, 2, 8);
}

Test(vocab_source, bos_and_eos_are_added_as_the_file_says_or_as_its_model_has_it)
{
    struct vocab_source s = small_source();
    EXPECT_IDS(&s, "a", TOKENIZER_ADD_CONFIG, TOKENIZER_PARSE_SPECIAL, 1, 9);
    EXPECT_IDS(&s, "a", TOKENIZER_ADD_FILE, TOKENIZER_PARSE_SPECIAL, 1, 9);
    s.add_bos = VOCAB_NO;
    s.add_eos = VOCAB_YES;
    EXPECT_IDS(&s, "a", TOKENIZER_ADD_CONFIG, TOKENIZER_PARSE_SPECIAL, 9, 2);
    s.add_eos = VOCAB_UNSAID;
    s.model = (struct text_view)VIEW("t5");
    EXPECT_IDS(&s, "a", TOKENIZER_ADD_CONFIG, TOKENIZER_PARSE_SPECIAL, 3, 4, 2);
}

Test(vocab_source, ends_of_generation_are_named_or_known_by_their_text)
{
    static const struct text_view harmony[] = {VIEW("<|return|>"), VIEW("<|call|>"),
                                               VIEW("<|end|>"), VIEW("<|endoftext|>"),
                                               VIEW("plain")};
    static const int32_t control[] = {3, 3, 3, 3, 1};
    struct vocab_source s = small_source();
    struct ids got = {0};
    cr_assert(vocab_source_ends(&s, &got));
    cr_expect(got.len == 2 && got.data[0] == 2 && got.data[1] == 12);
    got.len = 0;
    s.tokens = harmony;
    s.types = control;
    s.n_tokens = s.n_types = 5;
    s.eos = 0;
    cr_assert(vocab_source_ends(&s, &got)); /* the end of a channel ends no answer */
    cr_expect(got.len == 3 && got.data[0] == 0 && got.data[1] == 1 && got.data[2] == 3);
    got.len = 0;
    s.tokens = harmony + 1;
    s.eos = 0;
    s.n_tokens = s.n_types = 4;
    cr_assert(vocab_source_ends(&s, &got)); /* Phi-3's does */
    cr_expect_eq(got.len, 3);
    ids_free(&got);
}

/* ---- Sources that are wrong --------------------------------------------------------------------- */

static void expect_fault(const struct vocab_source *s, enum err_code code, const char *text)
{
    struct tokenizer *t = NULL;
    struct err why = {0};
    cr_expect_eq(tokenizer_open_vocab(s, &t, &why), code, "%s: %s", text,
                 t == NULL ? why.text : "opened");
    cr_expect_null(t);
    cr_expect(strstr(why.text, text) != NULL && strstr(why.text, "small.gguf") != NULL,
              "'%s' does not say '%s'", why.text, text);
}

Test(vocab_source, a_wrong_source_is_refused_with_its_reason)
{
    struct vocab_source s;
#define FAULT(code, text, ...)                                                                     \
    s = small_source();                                                                            \
    __VA_ARGS__;                                                                                   \
    expect_fault(&s, code, text)
    int32_t types[ARRAY_LEN(small_types)];
    float scores[ARRAY_LEN(small_scores)];
    struct text_view tokens[ARRAY_LEN(small_tokens)];
    static const struct text_view merges[] = {VIEW("a b"), VIEW("a c")}, bad[] = {VIEW("ab")};
    memcpy(types, small_types, sizeof types);
    memcpy(scores, small_scores, sizeof scores);
    memcpy(tokens, small_tokens, sizeof tokens);
    FAULT(ERR_CORRUPT, "model is missing", s.model.data = NULL);
    FAULT(ERR_UNSUPPORTED, "'rwkv'", s.model = (struct text_view)VIEW("rwkv"));
    FAULT(ERR_CORRUPT, "0 tokens", s.n_tokens = 0);
    FAULT(ERR_CORRUPT, "13 types for 14 tokens", s.n_types = 13);
    FAULT(ERR_CORRUPT, "0 scores for 14 tokens", s.n_scores = 0);
    FAULT(ERR_CORRUPT, "bos is 14, of 14", s.bos = 14);
    FAULT(ERR_CORRUPT, "eos is -2, of 14", s.eos = -2);
    FAULT(ERR_CORRUPT, "unknown token is 99", s.unknown = 99);
    types[3] = 7;
    FAULT(ERR_CORRUPT, "token 3 has the type 7", s.types = types);
    scores[5] = NAN;
    FAULT(ERR_CORRUPT, "score of token 5", s.scores = scores);
    tokens[5] = tokens[4];
    FAULT(ERR_CORRUPT, "two ids, 4 and 5", s.tokens = tokens);
    FAULT(ERR_UNSUPPORTED, "'sideways'", s.model = (struct text_view)VIEW("gpt2");
          s.pre = (struct text_view)VIEW("sideways"));
    FAULT(ERR_UNSUPPORTED, "'qwen2 deepseek-r1-qwen'", s.model = (struct text_view)VIEW("gpt2");
          s.pre = (struct text_view)VIEW("qwen2 deepseek-r1-qwen"));
    FAULT(ERR_CORRUPT, "without merges", s.model = (struct text_view)VIEW("gpt2"));
    FAULT(ERR_CORRUPT, "merge 1: 'c'", s.model = (struct text_view)VIEW("gpt2"); s.merges = merges;
          s.n_merges = 2);
    FAULT(ERR_CORRUPT, "merge 0 is not two", s.model = (struct text_view)VIEW("gpt2");
          s.merges = bad; s.n_merges = 1);
    FAULT(ERR_CORRUPT, "a table of 3 bytes", s.model = (struct text_view)VIEW("t5");
          s.charsmap = (struct text_view)VIEW("abc"));
    static char lengthy[2000];
    memset(lengthy, 'a', sizeof lengthy);
    memcpy(tokens, small_tokens, sizeof tokens);
    tokens[6] = (struct text_view){lengthy, sizeof lengthy};
    FAULT(ERR_TOO_LARGE, "token 6 has 2000 bytes", s.tokens = tokens);
}

Test(vocab_source, every_failed_allocation_is_reported)
{
    static const char *const models[] = {"llama", "t5", "gpt2"};
    static const struct text_view merges[] = {VIEW("a b")};
    for (size_t m = 0; m < ARRAY_LEN(models); m++) {
        struct vocab_source s = small_source();
        s.model = (struct text_view){models[m], strlen(models[m])};
        s.pre = (struct text_view)VIEW("gpt-2");
        s.merges = merges;
        s.n_merges = 1;
        s.chat_template = (struct text_view)VIEW("{{ bos_token }}");
        struct tokenizer *t = NULL;
        struct chat_template *c = NULL;
        struct ids ends = {0};
        struct err why;
        mem_fail_at(UINT64_MAX);
        cr_assert_eq(tokenizer_open_vocab(&s, &t, &why), ERR_OK, "%s", why.text);
        cr_assert_eq(chat_template_open_vocab(&s, &c, &why), ERR_OK, "%s", why.text);
        cr_assert(vocab_source_ends(&s, &ends));
        uint64_t n = mem_fail_at(0);
        tokenizer_close(t);
        chat_template_close(c);
        ids_free(&ends);
        cr_expect_gt(n, 20);
        for (uint64_t k = 1; k <= n; k++) {
            t = NULL;
            c = NULL;
            mem_fail_at(k);
            enum err_code rc = tokenizer_open_vocab(&s, &t, &why);
            if (rc == ERR_OK) rc = chat_template_open_vocab(&s, &c, &why);
            if (rc == ERR_OK && !vocab_source_ends(&s, &ends)) rc = ERR_EXHAUSTED;
            mem_fail_at(0);
            /* PCRE2 does without its just-in-time compiler when that finds no memory. */
            cr_expect(rc == ERR_EXHAUSTED || (m == 2 && rc == ERR_OK), "%s: allocation %u of %u",
                      models[m], (unsigned)k, (unsigned)n);
            tokenizer_close(t);
            chat_template_close(c);
            ids_free(&ends);
        }
    }
}
