/* Any tokenizer.json, then after lines "----" a tokenizer_config.json and a text: a tokenizer that opens encodes every
 * text to ids that it has, and decodes them to UTF-8. */
// links: text
// covers: coordinator/text/tokenizer.c coordinator/text/tokenizer_json.c coordinator/text/vocab.c coordinator/text/bpe.c
// covers: coordinator/text/bpe_merges.c coordinator/text/unigram.c coordinator/text/precompiled.c coordinator/text/added_tokens.c
// covers: coordinator/text/normalizer.c coordinator/text/pretokenizer.c coordinator/text/post_processor.c
// covers: coordinator/text/token_decoder.c coordinator/text/tok_json.c coordinator/text/regex.c coordinator/text/unicode.c
// max_len: 8192
#include <string.h>

#include "common/base/utf8.h"
#include "coordinator/text/text_stream.h"
#include "coordinator/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

void fuzz_init(void) {}

/* Answers the number of ids. */
static int check_text(const struct tokenizer *t, const uint8_t *text, size_t n,
                      enum tokenizer_special special)
{
    struct ids ids = {0};
    struct buf out = {0}, streamed = {0};
    struct text_stream s;
    struct err why;
    enum err_code rc =
        tokenizer_encode(t, (const char *)text, n, TOKENIZER_ADD_CONFIG, special, &ids, &why);
    if (rc == ERR_OK) rc = tokenizer_decode(t, ids.data, ids.len, false, &out, &why);
    if (rc == ERR_OK) {
        for (size_t i = 0; i < ids.len; i++)
            FUZZ_CHECK(ids.data[i] >= 0 && (uint32_t)ids.data[i] < tokenizer_vocab_size(t),
                       "id %d of %u", ids.data[i], tokenizer_vocab_size(t));
        FUZZ_CHECK(out.len == 0 || utf8_valid(out.data, out.len), "%zu bytes", out.len);
        text_stream_init(&s, t, false);
        for (size_t i = 0; i < ids.len; i++)
            text_stream_push(&s, ids.data[i], &streamed);
        text_stream_flush(&s, &streamed);
        if (streamed.failed)
            rc = ERR_EXHAUSTED;
        else
            FUZZ_CHECK(streamed.len == out.len &&
                           (out.len == 0 || memcmp(streamed.data, out.data, out.len) == 0),
                       "%zu bytes streamed, %zu decoded", streamed.len, out.len);
        text_stream_deinit(&s);
    }
    int answer = rc == ERR_OK ? 100 + (int)ids.len : rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : (int)rc;
    ids_free(&ids);
    buf_free(&out);
    buf_free(&streamed);
    return answer;
}

int fuzz_one(const uint8_t *data, size_t n)
{
    size_t n_tokenizer, n_config;
    const uint8_t *tokenizer = fuzz_part(&data, &n, &n_tokenizer);
    const uint8_t *config = fuzz_part(&data, &n, &n_config);
    fuzz_put_file("tokenizer.json", tokenizer, n_tokenizer);
    fuzz_put_file("tokenizer_config.json", n_config > 0 ? config : NULL, n_config);

    struct tokenizer *t = NULL;
    struct err why;
    enum err_code rc = tokenizer_open(fuzz_dir(), &t, &why);
    if (rc != ERR_OK) return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : (int)rc;
    FUZZ_CHECK(tokenizer_bos(t) < (int32_t)tokenizer_vocab_size(t), "bos %d", tokenizer_bos(t));
    int answer = check_text(t, data, n, TOKENIZER_PARSE_SPECIAL);
    if (answer != FUZZ_NO_MEMORY && check_text(t, data, n, TOKENIZER_NO_SPECIAL) == FUZZ_NO_MEMORY)
        answer = FUZZ_NO_MEMORY;
    tokenizer_close(t);
    return answer;
}
