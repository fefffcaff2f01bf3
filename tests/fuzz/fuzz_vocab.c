/* A tokenizer as GGUF's metadata hold it, in lines: keys, then after lines "----" tokens ("3 -1.5 </s>": type, score,
 * text), merges, a charsmap, a chat template, and a text. What opens encodes every text to ids that it has, decodes
 * them to UTF-8, and makes no control token of a user's text but the unknown one. */
// links: text
// covers: coordinator/text/tokenizer_vocab.c coordinator/text/vocab_pre.c coordinator/text/bpe_merges_gguf.c
// covers: coordinator/text/unigram.c
// max_len: 4096
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/utf8.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/vocab_source.h"
#include "tests/fuzz/fuzz.h"

enum { MOST = 600 };

static struct text_view tokens[MOST], merges[MOST];
static int32_t types[MOST];
static float scores[MOST];

void fuzz_init(void) {}

static bool next_line(struct text_view *rest, struct text_view *line)
{
    if (rest->n == 0) return false;
    const char *end = memchr(rest->data, '\n', rest->n);
    line->data = rest->data;
    line->n = end == NULL ? rest->n : (size_t)(end - rest->data);
    size_t used = end == NULL ? line->n : line->n + 1;
    rest->data += used;
    rest->n -= used;
    return true;
}

/* The word at the line's start; the line moves behind the space after it. */
static struct text_view word(struct text_view *line)
{
    const char *space = line->n == 0 ? NULL : memchr(line->data, ' ', line->n);
    struct text_view w = {line->data, space == NULL ? line->n : (size_t)(space - line->data)};
    size_t used = space == NULL ? w.n : w.n + 1;
    line->data += used;
    line->n -= used;
    return w;
}

static double number(struct text_view v)
{
    char text[40] = {0};
    memcpy(text, v.data, v.n < sizeof text ? v.n : sizeof text - 1);
    double x = strtod(text, NULL);
    return x >= -1e30 && x <= 1e30 ? x : x > 0 ? 1e39 : -1e39; /* far beyond a float: no number */
}

static int64_t whole(struct text_view v)
{
    double x = number(v);
    return x > -1e15 && x < 1e15 ? (int64_t)x : INT64_MIN;
}

static void read_keys(struct text_view rest, struct vocab_source *s)
{
    struct {
        const char *key;
        int64_t *out;
    } ids[] = {{"bos", &s->bos}, {"eos", &s->eos},         {"eot", &s->eot},
               {"eom", &s->eom}, {"unknown", &s->unknown}, {"padding", &s->padding}};
    struct {
        const char *key;
        int *out;
    } flags[] = {{"add_bos", &s->add_bos},
                 {"add_eos", &s->add_eos},
                 {"add_space_prefix", &s->add_space_prefix},
                 {"remove_extra_whitespaces", &s->remove_extra_whitespaces}};
    for (struct text_view line; next_line(&rest, &line);) {
        struct text_view key = word(&line);
        if (text_view_is(key, "architecture")) s->architecture = line;
        if (text_view_is(key, "model")) s->model = line;
        if (text_view_is(key, "pre")) s->pre = line;
        if (text_view_is(key, "fewer_types")) s->n_types -= s->n_types > 0;
        if (text_view_is(key, "no_types")) s->n_types = 0;
        if (text_view_is(key, "fewer_scores")) s->n_scores -= s->n_scores > 0;
        for (size_t i = 0; i < ARRAY_LEN(ids); i++)
            if (text_view_is(key, ids[i].key)) *ids[i].out = whole(line);
        for (size_t i = 0; i < ARRAY_LEN(flags); i++)
            if (text_view_is(key, flags[i].key)) *flags[i].out = whole(line) > 0;
    }
}

static size_t read_tokens(struct text_view rest)
{
    size_t n = 0;
    for (struct text_view line; n < MOST && next_line(&rest, &line); n++) {
        types[n] = (int32_t)(whole(word(&line)) & 15);
        scores[n] = (float)number(word(&line));
        tokens[n] = line.n == 1 && line.data[0] == '0' ? (struct text_view){NULL, 1} : line;
    }
    return n;
}

static size_t read_merges(struct text_view rest)
{
    size_t n = 0;
    while (n < MOST && next_line(&rest, &merges[n]))
        n++;
    return n;
}

/* Answers the number of ids. */
static int check_text(const struct tokenizer *t, const struct vocab_source *s, const uint8_t *text,
                      size_t n, enum tokenizer_special special)
{
    struct ids ids = {0};
    struct buf out = {0};
    struct err why;
    enum err_code rc =
        tokenizer_encode(t, (const char *)text, n, TOKENIZER_ADD_NONE, special, &ids, &why);
    if (rc == ERR_OK) rc = tokenizer_decode(t, ids.data, ids.len, false, &out, &why);
    if (rc == ERR_OK) {
        for (size_t i = 0; i < ids.len; i++) {
            FUZZ_CHECK(ids.data[i] >= 0 && (uint32_t)ids.data[i] < tokenizer_vocab_size(t),
                       "id %d of %u", ids.data[i], tokenizer_vocab_size(t));
            FUZZ_CHECK(special == TOKENIZER_PARSE_SPECIAL ||
                           !tokenizer_is_special(t, ids.data[i]) || ids.data[i] == s->unknown ||
                           s->unknown < 0,
                       "control token %d out of a plain text", ids.data[i]);
        }
        FUZZ_CHECK(out.len == 0 || utf8_valid(out.data, out.len), "%zu bytes", out.len);
    }
    int answer = rc == ERR_OK ? 100 + (int)ids.len : rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : (int)rc;
    ids_free(&ids);
    buf_free(&out);
    return answer;
}

static int check_template(const struct vocab_source *s)
{
    struct chat_template *t = NULL;
    struct err why;
    enum err_code rc = chat_template_open_vocab(s, &t, &why);
    chat_template_close(t);
    return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : 0;
}

int fuzz_one(const uint8_t *data, size_t n)
{
    struct text_view parts[5];
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        parts[i].data = (const char *)fuzz_part(&data, &n, &parts[i].n);
        parts[i].n -= parts[i].n > 0 && parts[i].data[parts[i].n - 1] == '\n';
    }
    struct vocab_source s = VOCAB_SOURCE_NONE;
    s.name = "fuzz";
    s.tokens = tokens;
    s.types = types;
    s.scores = scores;
    s.merges = merges;
    s.n_tokens = s.n_types = s.n_scores = read_tokens(parts[1]);
    s.n_merges = read_merges(parts[2]);
    s.charsmap = parts[3];
    if (parts[4].n > 0) s.chat_template = parts[4];
    read_keys(parts[0], &s);

    struct tokenizer *t = NULL;
    struct ids ends = {0};
    struct err why;
    int answer = 0;
    if (!vocab_source_ends(&s, &ends)) answer = FUZZ_NO_MEMORY;
    for (size_t i = 0; i < ends.len; i++)
        FUZZ_CHECK(ends.data[i] >= 0 && (size_t)ends.data[i] < s.n_tokens, "end %d of %zu",
                   ends.data[i], s.n_tokens);
    ids_free(&ends);
    if (answer != FUZZ_NO_MEMORY && check_template(&s) == FUZZ_NO_MEMORY) answer = FUZZ_NO_MEMORY;
    if (answer == FUZZ_NO_MEMORY) return answer;
    enum err_code rc = tokenizer_open_vocab(&s, &t, &why);
    if (rc != ERR_OK) return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : (int)rc;
    answer = check_text(t, &s, data, n, TOKENIZER_PARSE_SPECIAL);
    if (answer != FUZZ_NO_MEMORY &&
        check_text(t, &s, data, n, TOKENIZER_NO_SPECIAL) == FUZZ_NO_MEMORY)
        answer = FUZZ_NO_MEMORY;
    tokenizer_close(t);
    return answer;
}
