/* tokenizer.json, tokenizer_config.json and chat templates, with every field broken in every way and cut anywhere:
 * opened and of use, or refused with the file and the place named; never a crash, never memory of a size that the file
 * chose. */
// links: text
#include <criterion/criterion.h>

#include "common/base/limits.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "tests/unit/bad_values.h"
#include "tests/unit/modelfile_fixture.h"

#define MEMORY_BYTES (256u << 20) /* the vocabulary of an id of 4 Mi is 36 MiB */

static const char *const models[] = {MODELS "tiny-mixtral", MODELS "tiny-qwen3_moe",
                                     MODELS "tiny-olmoe"};

static const char sample[] =
    "Once <s>upon\xFF a ti\xCC\x81me\n\n  there were 123 wolves</s> \xE4\xB8\xAD";

/* What was opened must work: any text has ids, any ids a text. */
static enum err_code open_and_use(const char *dir, struct err *why)
{
    struct tokenizer *t = NULL;
    enum err_code rc = tokenizer_open(dir, &t, why);
    if (rc != ERR_OK) return rc;
    struct ids ids = {0};
    struct buf text = {0};
    for (int special = 0; special < 2; special++) {
        struct err e;
        cr_assert_eq(tokenizer_encode(t, sample, sizeof sample - 1, TOKENIZER_ADD_CONFIG,
                                      special ? TOKENIZER_PARSE_SPECIAL : TOKENIZER_NO_SPECIAL,
                                      &ids, &e),
                     ERR_OK, "%s", e.text);
        for (size_t i = 0; i < ids.len; i++)
            cr_assert(ids.data[i] >= 0 && (uint32_t)ids.data[i] < tokenizer_vocab_size(t));
        cr_assert_eq(tokenizer_decode(t, ids.data, ids.len, special, &text, &e), ERR_OK, "%s",
                     e.text);
    }
    ids_free(&ids);
    buf_free(&text);
    tokenizer_close(t);
    return ERR_OK;
}

struct walk {
    struct scratch dir;
    const char *file;
    json_t *root;
    size_t n_opened, n_refused;
};

/* Parts of the file that say nothing about encoding and decoding one text; whatever stands there is as good. */
static bool is_idle(const char *path)
{
    static const char *const idle[] = {
        ".version", ".truncation", ".padding",     ".post_processor.pair",
        ".type_id", ".tokens",     "trim_offsets", "<s>.id", /* beside "ids" */
    };
    for (size_t i = 0; i < sizeof idle / sizeof *idle; i++) {
        const char *at = strstr(path, idle[i]);
        if (at != NULL && (at[strlen(idle[i])] != 's' || strcmp(idle[i], "<s>.id") != 0))
            return true;
    }
    /* A ByteLevel does nothing behind the model, whatever its options. */
    const char *last = strrchr(path, '.');
    bool option = strcmp(last, ".add_prefix_space") == 0 || strcmp(last, ".use_regex") == 0;
    return option && (strstr(path, "post_processor") || strstr(path, "decoder"));
}

static bool is_boolean_text(const char *value)
{
    return strcmp(value, "true") == 0 || strcmp(value, "false") == 0;
}

/* May a value stand where `had` stood? Only one of its kind, or null where there may be nothing. */
static bool may_stand(const json_t *had, const char *path, const char *value)
{
    static const char *const optional[] = {".added_tokens", ".normalizer", ".pre_tokenizer",
                                           ".post_processor", ".unk_token"};
    const char *last = strrchr(path, '.');
    if (strcmp(value, "1e999") == 0) return false;
    if (is_idle(path)) return true;
    if (strcmp(value, "null") == 0) {
        bool may = json_is_null(had) || json_is_boolean(had);
        for (size_t i = 0; i < sizeof optional / sizeof *optional; i++)
            may |= strcmp(path, optional[i]) == 0 || strcmp(last, optional[i]) == 0;
        return may;
    }
    /* What is not built must say that it does nothing. */
    if (strstr("|.dropout|.continuing_subword_prefix|.end_of_word_suffix|", last))
        return strcmp(value, "0") == 0 || strcmp(value, "\"\"") == 0;
    if (strcmp(last, ".unk_token") == 0) return value[0] == '"';
    switch (json_typeof(had)) {
    case JSON_OBJECT:
        return false; /* an empty one lacks something everywhere */
    case JSON_ARRAY:
        return strcmp(value, "[]") == 0;
    case JSON_STRING:
        return value[0] == '"';
    case JSON_INTEGER:
        return strchr("0123456789", value[0]) != NULL && strpbrk(value, ".e") == NULL;
    case JSON_TRUE:
    case JSON_FALSE:
        return is_boolean_text(value);
    case JSON_REAL:
    case JSON_NULL:
        break;
    }
    return false;
}

static void try_one(struct walk *w, json_t *in, const char *key, size_t index, const json_t *had,
                    const char *value, const char *path)
{
    struct err why = {0};
    bool may = value == NULL || may_stand(had, path, value);
    char *text = with_value(w->root, in, key, index, value);
    const char *shown = value != NULL ? value : "(missing)";
    scratch_write(&w->dir, w->file, text, strlen(text));
    free(text);
    enum err_code rc = open_and_use(w->dir.dir, &why);
    w->n_opened += rc == ERR_OK;
    w->n_refused += rc != ERR_OK;
    if (rc == ERR_OK) {
        cr_expect(may, "%s = %s: opened", path, shown);
        return;
    }
    cr_expect(rc == ERR_CORRUPT || rc == ERR_UNSUPPORTED, "%s = %s: %s: %s", path, shown,
              err_name(rc), why.text);
    cr_expect(strstr(why.text, w->file) != NULL, "%s = %s: %s", path, shown, why.text);
    cr_expect(value == NULL || strcmp(value, "1e999") == 0 || !is_idle(path), "%s = %s: %s", path,
              shown, why.text);
}

/* Every member and element below `in`; of the long lists the first ones and the last. */
static void walk(struct walk *w, json_t *in, const char *path, unsigned depth)
{
    size_t n = json_is_object(in) ? json_object_size(in) : json_array_size(in), i = 0;
    void *it = json_is_object(in) ? json_object_iter(in) : NULL;
    cr_assert_lt(depth, 16u);
    for (; i < n; i++) {
        char at[300], key_copy[100];
        const char *key = NULL;
        json_t *child;
        if (json_is_object(in)) {
            snprintf(key_copy, sizeof key_copy, "%s", json_object_iter_key(it));
            key = key_copy;
            child = json_object_iter_value(it);
            it = json_object_iter_next(in, it);
            snprintf(at, sizeof at, "%s.%s", path, key);
        } else {
            child = json_array_get(in, i);
            snprintf(at, sizeof at, "%s[%zu]", path, i);
        }
        if (i >= 3 && i + 1 < n && n > 40) continue;
        json_incref(child);
        for (size_t v = 0; v < N_BAD_VALUES; v++)
            try_one(w, in, key, i, child, bad_values[v], at);
        walk(w, child, at, depth + 1);
        json_decref(child);
    }
}

/* The same fields, each taken away; removing one changes the order of its object, so the names come first. */
static void take_away(struct walk *w, json_t *in, const char *path, unsigned depth)
{
    char at[300], *names[41];
    size_t n = 0;
    const char *key;
    json_t *child;
    cr_assert_lt(depth, 16u);
    json_object_foreach(in, key, child)
    {
        if (n == 40) break;
        names[n++] = strdup(key);
    }
    for (size_t i = 0; i < n; i++) {
        snprintf(at, sizeof at, "%s.%s", path, names[i]);
        if (n < 40) try_one(w, in, names[i], 0, NULL, NULL, at);
        take_away(w, json_object_get(in, names[i]), at, depth + 1);
        free(names[i]);
    }
    for (size_t i = 0; i < json_array_size(in) && i < 3; i++)
        take_away(w, json_array_get(in, i), path, depth + 1);
}

Test(bad_text_files, every_field_of_tokenizer_json_is_taken_or_refused)
{
    limit_memory(MEMORY_BYTES);
    for (size_t m = 0; m < 3; m++) {
        struct walk w = {.dir = scratch_open(), .file = "tokenizer.json"};
        w.root = load_json(models[m], w.file);
        scratch_link_model(&w.dir, models[m]);
        unlink(scratch_path(&w.dir, w.file));
        walk(&w, w.root, "", 0);
        take_away(&w, w.root, "", 0);
        printf("%s of %s: %zu opened, %zu refused\n", w.file, strrchr(models[m], '/') + 1,
               w.n_opened, w.n_refused);
        json_decref(w.root);
        scratch_close(&w.dir);
    }
}

/* ---- tokenizer_config.json ------------------------------------------------------------------------- */

/* Tokenizer and template read it; each must say yes, or no with the file's name. */
static void try_config(const struct scratch *dir, const char *text, const char *what,
                       enum err_code codes[2])
{
    struct err why = {0};
    struct chat_template *t = NULL;
    scratch_write(dir, "tokenizer_config.json", text, strlen(text));
    codes[0] = open_and_use(dir->dir, &why);
    cr_expect(codes[0] == ERR_OK ||
                  (codes[0] == ERR_CORRUPT && strstr(why.text, "tokenizer_config.json")),
              "%s: %s", what, why.text);
    codes[1] = chat_template_open(dir->dir, &t, &why);
    cr_expect(codes[1] == ERR_OK || strstr(why.text, "tokenizer_config.json"), "%s: %s", what,
              why.text);
    cr_expect(codes[1] == ERR_OK || codes[1] == ERR_CORRUPT || codes[1] == ERR_NOT_FOUND, "%s: %s",
              what, err_name(codes[1]));
    chat_template_close(t);
}

static bool is_one_of(const char *value, const char *values)
{
    const char *at = value == NULL ? NULL : strstr(values, value);
    return at != NULL && at[-1] == ' ' && at[strlen(value)] == ' ';
}

Test(bad_text_files, every_field_of_tokenizer_config_json_is_taken_or_refused)
{
    static const struct {
        const char *key, *tokenizer, *template; /* the values that each may take */
    } rules[] = {
        {"bos_token", " null \"1\" \"\" ", " "},     {"eos_token", " null \"1\" \"\" ", " "},
        {"add_bos_token", " null true false ", " "}, {"add_eos_token", " null true false ", " "},
        {"chat_template", NULL, " \"1\" \"\" "},
    };
    limit_memory(MEMORY_BYTES);
    struct scratch dir = scratch_open();
    scratch_link_model(&dir, models[0]);
    unlink(scratch_path(&dir, "tokenizer_config.json"));
    json_t *root = load_json(models[0], "tokenizer_config.json");
    for (size_t r = 0; r < sizeof rules / sizeof *rules; r++)
        for (size_t v = 0; v <= N_BAD_VALUES; v++) {
            const char *value = v < N_BAD_VALUES ? bad_values[v] : NULL;
            char what[100], *text = with_value(root, root, rules[r].key, 0, value);
            enum err_code codes[2];
            snprintf(what, sizeof what, "%s = %s", rules[r].key, value ? value : "(missing)");
            try_config(&dir, text, what, codes);
            free(text);
            bool json = value == NULL || strcmp(value, "1e999") != 0;
            bool yes = json && (value == NULL || rules[r].tokenizer == NULL ||
                                is_one_of(value, rules[r].tokenizer));
            cr_expect_eq(codes[0] == ERR_OK, yes, "%s: the tokenizer says %s", what,
                         err_name(codes[0]));
            bool chat = strcmp(rules[r].key, "chat_template") == 0;
            bool none = chat && (value == NULL || strcmp(value, "null") == 0);
            enum err_code want = none                                           ? ERR_NOT_FOUND
                                 : !json                                        ? ERR_CORRUPT
                                 : !chat || is_one_of(value, rules[r].template) ? ERR_OK
                                                                                : ERR_CORRUPT;
            cr_expect_eq(codes[1], want, "%s: the template says %s", what, err_name(codes[1]));
        }
    for (size_t v = 0; v < N_BAD_VALUES; v++) { /* the whole */
        enum err_code codes[2];
        try_config(&dir, bad_values[v], bad_values[v], codes);
        bool object = strcmp(bad_values[v], "{}") == 0;
        cr_expect_eq(codes[0], object ? ERR_OK : ERR_CORRUPT, "%s", bad_values[v]);
        cr_expect_eq(codes[1], object ? ERR_NOT_FOUND : ERR_CORRUPT, "%s", bad_values[v]);
    }
    json_decref(root);
    scratch_close(&dir);
}

/* ---- cuts ------------------------------------------------------------------------------------------ */

Test(bad_text_files, a_file_cut_anywhere_is_refused_by_its_name)
{
    static const struct {
        const char *name;
        size_t step;
    } files[] = {{"tokenizer.json", 7}, {"tokenizer_config.json", 1}};
    for (size_t i = 0; i < 2; i++) {
        struct scratch dir = scratch_open();
        size_t n;
        scratch_link_model(&dir, models[1]);
        unsigned char *whole = read_bytes(scratch_path(&dir, files[i].name), &n);
        unlink(scratch_path(&dir, files[i].name));
        while (whole[n - 1] <= ' ')
            n--;
        for (size_t cut = 0; cut < n; cut += files[i].step) {
            struct tokenizer *t = NULL;
            struct err why = {0};
            scratch_write(&dir, files[i].name, whole, cut);
            cr_expect_eq(tokenizer_open(dir.dir, &t, &why), ERR_CORRUPT, "cut at %zu", cut);
            cr_expect(strstr(why.text, files[i].name) != NULL, "%s", why.text);
        }
        free(whole);
        scratch_close(&dir);
    }
}

/* ---- growth ---------------------------------------------------------------------------------------- */

/* A chain of steps that each double a text: 64 of them would make 2^64 bytes of one. */
Test(bad_text_files, a_chain_that_makes_texts_grow_without_end_is_refused)
{
    static const struct {
        const char *part, *list, *step, *word;
        bool at_open;
    } cases[] = {
        {"normalizer", "normalizers",
         "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aa\"}", "normalizer",
         false},
        {"normalizer", "normalizers",
         "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"aa\"}", "normalizer",
         false},
        {"pre_tokenizer", "pretokenizers",
         "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}", "pre_tokenizer",
         false},
        {"decoder", "decoders",
         "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aa\"}", "decoder",
         true},
    };
    limit_memory(MEMORY_BYTES);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct scratch dir = scratch_open();
        json_t *root = load_json(models[0], "tokenizer.json"), *list = json_array(),
               *step = json_loads(cases[i].step, 0, NULL);
        for (int k = 0; k < 20; k++)
            json_array_append(list, step);
        json_object_set_new(root, cases[i].part,
                            json_pack("{s:s, s:o}", "type", "Sequence", cases[i].list, list));
        scratch_write_json(&dir, "tokenizer.json", root);
        struct tokenizer *t = NULL;
        struct ids ids = {0};
        struct err why = {0};
        enum err_code rc = tokenizer_open(dir.dir, &t, &why);
        cr_expect_eq(rc, cases[i].at_open ? ERR_TOO_LARGE : ERR_OK, "%s", why.text);
        static const char text[] = "bad \xC3\xA9 bad";
        if (rc == ERR_OK)
            cr_expect_eq(tokenizer_encode(t, text, sizeof text - 1, TOKENIZER_ADD_NONE,
                                          TOKENIZER_NO_SPECIAL, &ids, &why),
                         ERR_TOO_LARGE, "%s: %s", cases[i].step, why.text);
        cr_expect(strstr(why.text, cases[i].word) != NULL, "%s", why.text);
        ids_free(&ids);
        tokenizer_close(t);
        json_decref(step);
        json_decref(root);
        scratch_close(&dir);
    }
}

/* ---- chat templates -------------------------------------------------------------------------------- */

static struct buf render_any(const char *source, size_t n, const json_t *messages,
                             size_t *n_rendered)
{
    struct chat_template *t = NULL;
    struct err why = {0};
    struct buf out = {0}, taint = {0};
    struct chat_template_input in = {
        .messages = messages, .add_generation_prompt = true, .now = {.tm_mday = 1}};
    static const struct chat_template_token tokens[] = {{"bos_token", "<s>"},
                                                        {"eos_token", "</s>"}};
    enum err_code rc = chat_template_parse_with_tokens(source, n, tokens, 2, &t, &why);
    cr_expect(rc == ERR_OK || rc == ERR_INVALID, "%.*s: %s: %s", (int)n, source, err_name(rc),
              why.text);
    if (rc == ERR_OK) {
        rc = chat_template_render(t, &in, &out, &taint, &why);
        cr_expect(rc == ERR_OK || rc == ERR_INVALID, "%.*s: %s: %s", (int)n, source, err_name(rc),
                  why.text);
        cr_expect_eq(out.len, taint.len);
        *n_rendered += rc == ERR_OK;
    }
    cr_expect(rc == ERR_OK || why.text[0] != '\0');
    chat_template_close(t);
    buf_free(&taint);
    return out;
}

Test(bad_text_files, a_template_cut_or_changed_at_any_byte_never_harms)
{
    static const char changes[] = {'{', '}', '%', '\'', '(', '-', '0', '\0', '\xff'};
    limit_memory(MEMORY_BYTES);
    json_t *messages = json_loads("[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\","
                                  "\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"a\"}]",
                                  0, NULL);
    for (size_t m = 0; m < 3; m++) {
        json_t *config = load_json(models[m], "tokenizer_config.json");
        const char *source = json_string_value(json_object_get(config, "chat_template"));
        size_t n = strlen(source), n_rendered = 0;
        for (size_t cut = 0; cut < n; cut++) { /* in a block of its size: a read past it is seen */
            char *part = malloc(cut + 1);
            memcpy(part, source, cut);
            part[cut] = '\0';
            struct buf out = render_any(part, cut, messages, &n_rendered);
            buf_free(&out);
            free(part);
        }
        char *copy = strdup(source);
        for (size_t at = 0; at < n; at++)
            for (size_t c = 0; c < sizeof changes; c++) {
                copy[at] = changes[c];
                struct buf out = render_any(copy, n, messages, &n_rendered);
                buf_free(&out);
                copy[at] = source[at];
            }
        free(copy);
        printf("template of %s: %zu of its damaged forms still render\n",
               strrchr(models[m], '/') + 1, n_rendered);
        json_decref(config);
    }
    json_decref(messages);
}
