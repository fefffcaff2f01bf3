/* Tokenizers: the published ones against their official library's answers, the tiny models' own, and
 * files that are wrong. */
// links: text
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/text/text_stream.h"
#include "coordinator/text/tokenizer.h"

/* ---- Where things are --------------------------------------------------------------------------- */

/* The folder of the published tokenizers, or NULL when it is not there and need not be. */
static const char *shared(void)
{
    static char path[4096];
    const char *root = getenv("MOESAIC_SHARED");
    snprintf(path, sizeof path, "%s/tokenizers", root != NULL ? root : PROJECT_ROOT "/../shared");
    if (access(path, R_OK) == 0) return path;
    const char *required = getenv("MOESAIC_REQUIRE_SHARED");
    if (required != NULL && strcmp(required, "1") == 0) cr_assert_fail("%s is missing", path);
    cr_skip_test("%s is missing", path);
    return NULL;
}

static char scratch_dir[64];

static const char *make_scratch(void)
{
    snprintf(scratch_dir, sizeof scratch_dir, "/tmp/moesaic-tok-XXXXXX");
    cr_assert_not_null(mkdtemp(scratch_dir));
    return scratch_dir;
}

static void remove_scratch(void)
{
    char path[128];
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", scratch_dir, names[i]);
        unlink(path);
    }
    rmdir(scratch_dir);
}

static void write_scratch(const char *name, const char *text, size_t n)
{
    char path[128];
    struct err why;
    snprintf(path, sizeof path, "%s/%s", scratch_dir, name);
    cr_assert_eq(file_replace(path, text, n, &why), ERR_OK, "%s", why.text);
}

/* Unpack and open one of the published tokenizers. */
static struct tokenizer *open_shared(const char *name)
{
    char command[9000];
    const char *from = shared(), *to = make_scratch();
    snprintf(command, sizeof command, "xz -dc '%s/%s/tokenizer.json.xz' > '%s/tokenizer.json'",
             from, name, to);
    cr_assert_eq(system(command), 0);
    snprintf(command, sizeof command, "cp '%s/%s/tokenizer_config.json' '%s/' 2>/dev/null", from,
             name, to);
    if (system(command) != 0) cr_log_info("%s has no tokenizer_config.json", name);
    struct tokenizer *t = NULL;
    struct err why;
    enum err_code rc = tokenizer_open(to, &t, &why);
    remove_scratch();
    cr_assert_eq(rc, ERR_OK, "%s", why.text);
    return t;
}

static json_t *read_cases(const char *name, const char *file)
{
    char path[8200];
    json_t *cases;
    struct err why;
    snprintf(path, sizeof path, "%s/%s/%s", shared(), name, file);
    cr_assert_eq(json_parse_file(path, 64 << 20, 64, &cases, &why), ERR_OK, "%s", why.text);
    return cases;
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

/* The text of a case, from "text" or "bytes_hex". */
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

static void expect_text(const struct buf *got, const json_t *want, const char *what, size_t index)
{
    cr_expect(got->len == json_string_length(want) &&
                  memcmp(got->len ? got->data : "", json_string_value(want), got->len) == 0,
              "case %zu: %s is '%s', should be '%s'", index, what, got->len ? got->data : "",
              json_string_value(want));
}

static void check_cases(const char *name)
{
    struct tokenizer *t = open_shared(name);
    json_t *cases = read_cases(name, "expected.json");
    struct ids want = {0}, got = {0};
    struct buf text = {0};
    struct err why;
    cr_expect_gt(json_array_size(cases), 100);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        bool add = json_is_true(json_object_get(c, "add_special_tokens"));
        read_text(c, &text);
        read_ids(json_object_get(c, "ids"), &want);
        cr_assert_eq(tokenizer_encode(t, text.data ? text.data : "", text.len,
                                      add ? TOKENIZER_ADD_FILE : TOKENIZER_ADD_NONE,
                                      TOKENIZER_PARSE_SPECIAL, &got, &why),
                     ERR_OK, "case %zu: %s", i, why.text);
        cr_expect(same_ids(&want, &got), "case %zu: ids of '%s' differ (%zu, should be %zu)", i,
                  text.len ? text.data : "", got.len, want.len);
        for (int skip = 0; skip < 2; skip++) {
            const json_t *decoded = json_object_get(c, "decoded_skip");
            if (!skip || decoded == NULL) decoded = json_object_get(c, "decoded");
            buf_clear(&text);
            cr_assert_eq(tokenizer_decode(t, want.data, want.len, skip, &text, &why), ERR_OK, "%s",
                         why.text);
            expect_text(&text, decoded, skip ? "decoded_skip" : "decoded", i);
        }
    }
    json_decref(cases);
    cases = read_cases(name, "stream.json");
    cr_expect_gt(json_array_size(cases), 10);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i), *pieces = json_object_get(c, "pieces");
        struct text_stream s;
        text_stream_init(&s, t, json_is_true(json_object_get(c, "skip_special_tokens")));
        read_ids(json_object_get(c, "ids"), &want);
        cr_assert_eq(json_array_size(pieces), want.len);
        for (size_t k = 0; k < want.len; k++) {
            buf_clear(&text);
            text_stream_push(&s, want.data[k], &text);
            expect_text(&text, json_array_get(pieces, k), "a piece", i);
        }
        buf_clear(&text);
        text_stream_flush(&s, &text);
        expect_text(&text, json_object_get(c, "flush"), "flush", i);
        text_stream_deinit(&s);
    }
    json_decref(cases);
    ids_free(&want);
    ids_free(&got);
    buf_free(&text);
    tokenizer_close(t);
}

Test(tokenizer, mixtral_equals_the_official_library)
{
    check_cases("mixtral");
}
Test(tokenizer, deepseek_v2_equals_the_official_library)
{
    check_cases("deepseek_v2");
}
Test(tokenizer, deepseek_v3_equals_the_official_library)
{
    check_cases("deepseek_v3");
}
Test(tokenizer, qwen3_equals_the_official_library)
{
    check_cases("qwen3");
}
Test(tokenizer, gpt_oss_equals_the_official_library)
{
    check_cases("gpt_oss");
}
Test(tokenizer, llama3_equals_the_official_library)
{
    check_cases("llama3");
}
Test(tokenizer, olmoe_equals_the_official_library)
{
    check_cases("olmoe");
}

Test(tokenizer, t5_equals_the_official_library)
{
    check_cases("t5");
}

/* ---- The tiny models ---------------------------------------------------------------------------- */

/* Each prompt's ids are the beginning of its text's; a lone one is its text's last, and so is an eos (of an encoder). */
static void check_prompts(const char *dir)
{
    char path[4096];
    struct tokenizer *t;
    struct ids want = {0}, got = {0};
    struct err why;
    json_t *expected;
    cr_assert_eq(tokenizer_open(dir, &t, &why), ERR_OK, "%s", why.text);
    snprintf(path, sizeof path, "%s/expected.json", dir);
    cr_assert_eq(json_parse_file(path, 64 << 20, 64, &expected, &why), ERR_OK, "%s", why.text);
    const json_t *prompts = json_object_get(expected, "prompts");
    cr_expect_gt(json_array_size(prompts), 2);
    for (size_t i = 0; i < json_array_size(prompts); i++) {
        const json_t *p = json_array_get(prompts, i), *text = json_object_get(p, "text");
        read_ids(json_object_get(p, "ids"), &want);
        bool eos = want.len > 0 && want.data[want.len - 1] == tokenizer_eos(t);
        cr_assert_eq(
            tokenizer_encode(t, json_string_value(text), json_string_length(text),
                             want.len == 1 && !eos ? TOKENIZER_ADD_NONE : TOKENIZER_ADD_CONFIG,
                             TOKENIZER_PARSE_SPECIAL, &got, &why),
            ERR_OK, "%s", why.text);
        cr_assert(got.len >= want.len, "%s: prompt %zu has %zu ids, should have %zu", dir, i,
                  got.len, want.len);
        if (want.len == 1 || eos) got.data[want.len - 1] = got.data[got.len - 1];
        got.len = want.len;
        cr_expect(same_ids(&want, &got), "%s: ids of prompt %zu differ", dir, i);
    }
    json_decref(expected);
    ids_free(&want);
    ids_free(&got);
    tokenizer_close(t);
}

Test(tokenizer, tiny_models_equal_the_official_library)
{
    check_prompts(TEST_DATA "/models/tiny-mixtral");
    check_prompts(TEST_DATA "/models/tiny-qwen3_moe");
    check_prompts(TEST_DATA "/models/tiny-olmoe");
}

Test(tokenizer, every_familys_tiny_model_equals_the_official_library)
{
    static const char *const names[] = {
        "deepseek",  "deepseek_v2", "deepseek_v2-lite", "deepseek_v3",    "deepseek_v3-fp8",
        "glm4_moe",  "gpt_oss",     "granitemoe",       "grok-1",         "llama",
        "llama4",    "mixtral",     "mixtral-bf16",     "olmoe",          "phimoe",
        "qwen2_moe", "qwen3",       "qwen3_moe",        "qwen3_moe-bf16", "switch_transformers"};
    const char *root = getenv("MOESAIC_SHARED");
    shared();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/models/tiny-%s",
                 root != NULL ? root : PROJECT_ROOT "/../shared", names[i]);
        check_prompts(path);
    }
}

/* llama.cpp's own vectors, for the vocabularies that are here as tokenizer.json. */
Test(tokenizer, llama3_and_qwen3_give_the_ids_of_llama_cpp)
{
    static const char *const names[][2] = {{"llama3", "llama-bpe"}, {"qwen3", "qwen2"}};
    json_t *vectors = read_cases("gguf", "vectors.json");
    struct ids want = {0}, got = {0};
    struct err why;
    for (int k = 0; k < 2; k++) {
        struct tokenizer *t = open_shared(names[k][0]);
        const json_t *cases = json_object_get(vectors, names[k][1]);
        cr_expect_gt(json_array_size(cases), 40);
        for (size_t i = 0; i < json_array_size(cases); i++) {
            const json_t *c = json_array_get(cases, i), *text = json_object_get(c, "text");
            read_ids(json_object_get(c, "ids"), &want);
            cr_assert_eq(tokenizer_encode(t, json_string_value(text), json_string_length(text),
                                          TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, &got, &why),
                         ERR_OK, "%s", why.text);
            cr_expect(same_ids(&want, &got), "%s: '%s'", names[k][1], json_string_value(text));
        }
        tokenizer_close(t);
    }
    ids_free(&want);
    ids_free(&got);
    json_decref(vectors);
}

Test(tokenizer, the_demonstration_model_equals_the_official_library)
{
    check_prompts(PROJECT_ROOT "/deploy/demo");
}

/* ---- One small file of our own ------------------------------------------------------------------- */

/* Letters a b c, spaces, two merges, an unknown, and every kind of added token. */
static const char small[] =
    "{\"added_tokens\":["
    "{\"id\":0,\"content\":\"<unk>\",\"special\":true,\"normalized\":false},"
    "{\"id\":1,\"content\":\"<s>\",\"special\":true,\"normalized\":false},"
    "{\"id\":10,\"content\":\"<tool>\",\"special\":false,\"normalized\":false},"
    "{\"id\":11,\"content\":\"  \",\"special\":false,\"normalized\":true},"
    "{\"id\":12,\"content\":\"word\",\"single_word\":true,\"normalized\":false},"
    "{\"id\":13,\"content\":\"<wide>\",\"lstrip\":true,\"rstrip\":true,\"normalized\":false}],"
    "\"normalizer\":{\"type\":\"NFC\"},"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
    "\"[ab]+|\\\\s\"},\"behavior\":\"Isolated\"}]},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},"
    "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[1]}}},"
    "\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"vocab\":{\"<unk>\":0,\"a\":2,"
    "\"b\":3,\"c\":4,\" \":5,\"ab\":6,\"aba\":7,\"abab\":8,\"\\u00e9\":9},"
    "\"merges\":[\"a b\",[\"ab\",\"a\"],\"ab ab\"]}}";

static struct tokenizer *open_small(void)
{
    struct tokenizer *t;
    struct err why;
    make_scratch();
    write_scratch("tokenizer.json", small, sizeof small - 1);
    static const char config[] =
        "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"</none>\","
        "\"add_bos_token\":true,\"model_max_length\":1000000000000000019884624838656}";
    write_scratch("tokenizer_config.json", config, sizeof config - 1);
    cr_assert_eq(tokenizer_open(scratch_dir, &t, &why), ERR_OK, "%s", why.text);
    remove_scratch();
    return t;
}

static void expect_ids(const struct tokenizer *t, const char *text, enum tokenizer_add add,
                       enum tokenizer_special special, size_t n, const int32_t *want)
{
    struct ids got = {0}, ids = {0};
    struct err why;
    cr_assert(ids_append(&ids, want, n));
    cr_assert_eq(tokenizer_encode(t, text, strlen(text), add, special, &got, &why), ERR_OK, "%s",
                 why.text);
    cr_expect(same_ids(&ids, &got), "ids of '%s' differ (%zu, should be %zu)", text, got.len, n);
    ids_free(&got);
    ids_free(&ids);
}
#define EXPECT_IDS(t, text, add, special, ...)                                                     \
    expect_ids(t, text, add, special, sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t),            \
               (int32_t[]){__VA_ARGS__})

Test(tokenizer, merges_the_lowest_rank_first_and_leftmost_among_equals)
{
    struct tokenizer *t = open_small();
    EXPECT_IDS(t, "aba", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 7);
    EXPECT_IDS(t, "ababa", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 6, 7);
    EXPECT_IDS(t, "abab", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 8);
    EXPECT_IDS(t, "aabcxyz", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 2, 6, 4, 0);
    EXPECT_IDS(t, "e\xCC\x81", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 9);
    tokenizer_close(t);
}

Test(tokenizer, a_users_text_cannot_spell_control_tokens)
{
    struct tokenizer *t = open_small();
    EXPECT_IDS(t, "a<s><tool>  a", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 2, 1, 10, 11, 2);
    EXPECT_IDS(t, "a<s><tool>  a", TOKENIZER_ADD_NONE, TOKENIZER_NO_SPECIAL, 2, 0, 11, 2);
    tokenizer_close(t);
}

Test(tokenizer, added_tokens_obey_their_flags)
{
    struct tokenizer *t = open_small();
    EXPECT_IDS(t, "a word a", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 2, 5, 12, 5, 2);
    EXPECT_IDS(t, "aworda", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 2, 0, 2);
    EXPECT_IDS(t, "a \t<wide>\n a", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 2, 13, 2);
    tokenizer_close(t);
}

Test(tokenizer, bos_is_added_as_asked_and_only_once)
{
    struct tokenizer *t = open_small();
    EXPECT_IDS(t, "a", TOKENIZER_ADD_NONE, TOKENIZER_PARSE_SPECIAL, 2);
    EXPECT_IDS(t, "a", TOKENIZER_ADD_FILE, TOKENIZER_PARSE_SPECIAL, 1, 2);
    EXPECT_IDS(t, "a", TOKENIZER_ADD_CONFIG, TOKENIZER_PARSE_SPECIAL, 1, 2);
    cr_expect_eq(tokenizer_bos(t), 1);
    cr_expect_eq(tokenizer_eos(t), -1);
    cr_expect_eq(tokenizer_vocab_size(t), 14);
    cr_expect_eq(tokenizer_find(t, "<tool>", 6), 10);
    cr_expect(tokenizer_is_special(t, 1));
    cr_expect_not(tokenizer_is_special(t, 10));
    cr_expect_not(tokenizer_is_special(t, 1 << 30));
    tokenizer_close(t);
}

Test(tokenizer, deepseek_v3_gets_its_bos_from_the_config)
{
    struct tokenizer *t = open_shared("deepseek_v3");
    EXPECT_IDS(t, "Hello, world!", TOKENIZER_ADD_FILE, TOKENIZER_PARSE_SPECIAL, 19923, 14, 2058, 3);
    EXPECT_IDS(t, "Hello, world!", TOKENIZER_ADD_CONFIG, TOKENIZER_PARSE_SPECIAL, 0, 19923, 14,
               2058, 3);
    struct ids got = {0};
    struct err why;
    static const char user[] = "<\xEF\xBD\x9C"
                               "User\xEF\xBD\x9C>";
    cr_assert_eq(tokenizer_encode(t, user, sizeof user - 1, TOKENIZER_ADD_NONE,
                                  TOKENIZER_NO_SPECIAL, &got, &why),
                 ERR_OK);
    cr_expect_gt(got.len, 1, "a marker that is not special must not pass either");
    for (size_t i = 0; i < got.len; i++)
        cr_expect_lt(got.data[i], 128000);
    ids_free(&got);
    tokenizer_close(t);
}

/* Quadratic behavior would need hours for these; the bound is loose for slow machines. */
static void check_runs(const struct tokenizer *t, const char *name, size_t n)
{
    static const char *const runs[] = {"a", " ", "\n ", "\xCC\x81\xCC\xA3", "\xE4\xB8\xAD",
                                       "1", "!"};
    char *text = malloc(n + 1);
    struct ids ids = {0};
    struct err why;
    for (size_t r = 0; r < sizeof runs / sizeof *runs; r++) {
        size_t len = strlen(runs[r]);
        for (size_t i = 0; i < n; i++)
            text[i] = runs[r][i % len];
        text[n] = 'x';
        struct timespec a, b;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
        cr_assert_eq(
            tokenizer_encode(t, text, n + 1, TOKENIZER_ADD_NONE, TOKENIZER_NO_SPECIAL, &ids, &why),
            ERR_OK, "%s", why.text);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
        cr_expect_lt(b.tv_sec - a.tv_sec, 8, "%s, run %zu", name, r);
    }
    ids_free(&ids);
    free(text);
}

Test(tokenizer, long_runs_take_linear_time)
{
    static const char *const names[] = {"mixtral", "deepseek_v2", "deepseek_v3", "qwen3",
                                        "gpt_oss", "llama3",      "olmoe",       "t5"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        struct tokenizer *t = open_shared(names[k]);
        check_runs(t, names[k], 300000);
        tokenizer_close(t);
    }
}

/* More characters than a match may backtrack in a short text: the spaces are given back one by one. */
Test(tokenizer, ten_megabytes_of_one_character_are_a_text_like_any_other)
{
    struct tokenizer *t;
    struct ids ids = {0};
    struct err why;
    size_t n = LIMIT_TOKENIZER_REGEX_STEPS + 1000;
    char *text = malloc(n);
    cr_assert_eq(tokenizer_open(TEST_DATA "/models/tiny-qwen3_moe", &t, &why), ERR_OK, "%s",
                 why.text);
    memset(text, ' ', n);
    cr_expect_eq(tokenizer_encode(t, text, n, TOKENIZER_ADD_NONE, TOKENIZER_NO_SPECIAL, &ids, &why),
                 ERR_OK, "%s", why.text);
    ids_free(&ids);
    free(text);
    tokenizer_close(t);
}

/* ---- Files that are wrong ------------------------------------------------------------------------ */

static void replace(struct buf *b, const char *from, const char *to)
{
    const char *hit = strstr(b->data, from);
    cr_assert_not_null(hit, "'%s' is not in the file", from);
    struct buf out = {0};
    buf_append(&out, b->data, (size_t)(hit - b->data));
    buf_puts(&out, to);
    buf_puts(&out, hit + strlen(from));
    buf_free(b);
    *b = out;
}

Test(tokenizer, a_wrong_file_is_refused_with_its_reason)
{
    static const struct {
        const char *from, *to;
        enum err_code code;
        const char *text;
    } faults[] = {
        {"\"type\":\"BPE\"", "\"type\":\"WordPiece\"", ERR_UNSUPPORTED, "model: type 'WordPiece'"},
        {"\"type\":\"BPE\",", "", ERR_CORRUPT, "'type' is missing"},
        {"\"type\":\"NFC\"", "\"type\":\"Nmt\"", ERR_UNSUPPORTED, "normalizer: type 'Nmt'"},
        {"\"type\":\"NFC\"", "\"type\":7", ERR_CORRUPT, "'type' is a number"},
        {"{\"type\":\"NFC\"}", "[]", ERR_CORRUPT, "normalizer is an array"},
        {"\"type\":\"Split\"", "\"type\":\"Splitt\"", ERR_UNSUPPORTED,
         "pre_tokenizer: type 'Splitt'"},
        {"\"Isolated\"", "\"Sideways\"", ERR_UNSUPPORTED, "Sideways"},
        {"[ab]+|", "[ab+|", ERR_CORRUPT, "regular expression"},
        {"[ab]+|", "(?<n>a)|", ERR_UNSUPPORTED, "(?<n>"},
        {"[ab]+|", "[a&&[b]]|", ERR_UNSUPPORTED, "&&"},
        {"\"Regex\":", "\"Rogex\":", ERR_CORRUPT, "'String' is missing"},
        {"\"TemplateProcessing\"", "\"BertProcessing\"", ERR_UNSUPPORTED, "BertProcessing"},
        {"\"ids\":[1]", "\"ids\":[99]", ERR_CORRUPT, "99"},
        {"\"ids\":[1]", "\"ids\":\"1\"", ERR_CORRUPT, "'ids' is a string"},
        {"{\"Sequence\":{\"id\":\"A\"}}", "{\"Sequence\":{\"id\":\"B\"}}", ERR_CORRUPT, "item 1"},
        {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":null", ERR_UNSUPPORTED, "decoder"},
        {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":{\"type\":\"CTC\"}", ERR_UNSUPPORTED,
         "CTC"},
        {"\"c\":4", "\"c\":-4", ERR_CORRUPT, "-4"},
        {"\"c\":4", "\"c\":4.5", ERR_CORRUPT, "not an integer"},
        {"\"c\":4", "\"c\":99999999", ERR_CORRUPT, "99999999"},
        {"\"c\":4", "\"c\":99999999999999999999", ERR_CORRUPT, "not an integer"},
        {"\"c\":4", "\"c\":3", ERR_CORRUPT, "id 3 has two tokens"},
        {"\"c\":4", "\"c\":\"4\"", ERR_CORRUPT, "a string"},
        {"\"c\":4", "\"b\":4", ERR_CORRUPT, "duplicate"},
        {"\"id\":10,", "\"id\":4,", ERR_CORRUPT, "id 4 has two tokens"},
        {"\"id\":10,", "", ERR_CORRUPT, "added_tokens[2]"},
        {"\"id\":0,\"content\":\"<unk>\"", "\"id\":20,\"content\":\"<unk>\"", ERR_CORRUPT,
         "two ids, 0 and 20"},
        {"\"content\":\"<tool>\"", "\"content\":null", ERR_CORRUPT, "'content' is null"},
        {"\"single_word\":true", "\"single_word\":1", ERR_CORRUPT, "single_word"},
        {"\"unk_token\":\"<unk>\"", "\"unk_token\":\"<huh>\"", ERR_CORRUPT, "<huh>"},
        {"\"fuse_unk\":true", "\"fuse_unk\":\"yes\"", ERR_CORRUPT, "fuse_unk"},
        {"\"fuse_unk\":true", "\"end_of_word_suffix\":\"</w>\"", ERR_UNSUPPORTED,
         "end_of_word_suffix"},
        {"\"a b\"", "\"a  b\"", ERR_CORRUPT, "merge 0 is not two tokens"},
        {"\"a b\"", "\"ab\"", ERR_CORRUPT, "merge 0 is not two tokens"},
        {"\"a b\"", "\"a c\"", ERR_CORRUPT, "merge 0: 'ac' is not in the vocabulary"},
        {"[\"ab\",\"a\"]", "[\"ab\",\"q\"]", ERR_CORRUPT, "merge 1: 'q'"},
        {"[\"ab\",\"a\"]", "[\"ab\"]", ERR_CORRUPT, "merge 1 is not two tokens"},
        {"[\"ab\",\"a\"]", "7", ERR_CORRUPT, "merge 1 is not two tokens"},
        {"\"merges\"", "\"murges\"", ERR_CORRUPT, "'merges' is missing"},
        {"\"vocab\":{", "\"vocab\":[{", ERR_CORRUPT, ""},
        {"\"model\"", "\"modal\"", ERR_CORRUPT, "'model' is missing"},
        {"\"added_tokens\":[", "\"added_tokens\":7,\"x\":[", ERR_CORRUPT, "added_tokens"},
    };
    make_scratch();
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        struct buf file = {0};
        struct tokenizer *t = NULL;
        struct err why;
        buf_puts(&file, small);
        replace(&file, faults[i].from, faults[i].to);
        write_scratch("tokenizer.json", file.data, file.len);
        cr_expect_eq(tokenizer_open(scratch_dir, &t, &why), faults[i].code, "fault %zu (%s): %s", i,
                     faults[i].to, t == NULL ? why.text : "opened");
        cr_expect_null(t);
        cr_expect_not_null(strstr(why.text, faults[i].text), "fault %zu: '%s' does not say '%s'", i,
                           why.text, faults[i].text);
        cr_expect_not_null(strstr(why.text, "tokenizer.json"), "'%s' names no file", why.text);
        buf_free(&file);
    }
    remove_scratch();
}

Test(tokenizer, a_cut_file_is_refused_wherever_it_is_cut)
{
    make_scratch();
    for (size_t n = 0; n < sizeof small - 1; n += 7) {
        struct tokenizer *t = NULL;
        struct err why;
        write_scratch("tokenizer.json", small, n);
        cr_expect_eq(tokenizer_open(scratch_dir, &t, &why), ERR_CORRUPT, "cut after %zu bytes", n);
        cr_expect_null(t);
    }
    remove_scratch();
    struct tokenizer *t;
    struct err why;
    cr_expect_eq(tokenizer_open(scratch_dir, &t, &why), ERR_NOT_FOUND);
}

/* ---- Memory that is short ------------------------------------------------------------------------ */

static enum err_code open_and_use(const char *dir, struct err *why)
{
    static const char text[] =
        "Once <s>upon\xFF a ti\xCC\x81me\n\n  there were 123 wolves</s> \xE4\xB8\xAD";
    struct tokenizer *t = NULL;
    struct ids ids = {0};
    struct buf out = {0};
    enum err_code rc = tokenizer_open(dir, &t, why);
    if (rc == ERR_OK)
        rc = tokenizer_encode(t, text, sizeof text - 1, TOKENIZER_ADD_CONFIG,
                              TOKENIZER_PARSE_SPECIAL, &ids, why);
    if (rc == ERR_OK) rc = tokenizer_decode(t, ids.data, ids.len, false, &out, why);
    ids_free(&ids);
    buf_free(&out);
    tokenizer_close(t);
    return rc;
}

static void sweep(const char *dir)
{
    struct err why;
    mem_fail_at(UINT64_MAX);
    cr_assert_eq(open_and_use(dir, &why), ERR_OK, "%s", why.text);
    uint64_t n = mem_fail_at(0);
    cr_expect_gt(n, 20);
    for (uint64_t k = 1; k <= n; k += 1 + k / 100) { /* every early one, then every so many */
        mem_fail_at(k);
        enum err_code rc = open_and_use(dir, &why);
        mem_fail_at(0);
        /* PCRE2 does without its just-in-time compiler when that finds no memory. */
        cr_expect(rc == ERR_EXHAUSTED || rc == ERR_OK, "allocation %u of %u: %s", (unsigned)k,
                  (unsigned)n, why.text);
        if (k < 4 || k > n - 4)
            cr_expect_eq(rc, ERR_EXHAUSTED, "allocation %u of %u", (unsigned)k, (unsigned)n);
    }
}

Test(tokenizer, every_failed_allocation_is_reported)
{
    sweep(TEST_DATA "/models/tiny-mixtral");
    sweep(TEST_DATA "/models/tiny-qwen3_moe");
}
