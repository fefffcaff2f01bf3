/* Any ids, two bytes each after the first, which chooses the tokenizer and whether control tokens are shown: the text
 * as it streams is the text decoded at once, and valid wherever it is looked at. */
// links: text
// covers: coordinator/text/text_stream.c common/base/utf8.c
// max_len: 256
#include <string.h>

#include "common/base/utf8.h"
#include "coordinator/text/text_stream.h"
#include "coordinator/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

/* Metaspace writes the first token of a text otherwise than the rest. */
static const char metaspace[] =
    "{\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {\"\xE2\x96\x81\": 0, \"a\": 1, "
    "\"\xE2\x96\x81\xE2\x96\x81\": 2, \"\xC3\xA9\": 3, \" \": 4}}, "
    "\"decoder\": {\"type\": \"Metaspace\", \"replacement\": \"\xE2\x96\x81\"}}";

#define N_FILES 3
static struct tokenizer *tokenizers[N_FILES];

void fuzz_init(void)
{
    struct err why;
    fuzz_put_file("tokenizer.json", metaspace, sizeof metaspace - 1);
    const char *dirs[N_FILES] = {PROJECT_ROOT "/tests/data/models/tiny-mixtral",
                                 PROJECT_ROOT "/tests/data/models/tiny-qwen3_moe", fuzz_dir()};
    for (size_t i = 0; i < N_FILES; i++)
        FUZZ_CHECK(tokenizer_open(dirs[i], &tokenizers[i], &why) == ERR_OK, "%s", why.text);
}

int fuzz_one(const uint8_t *data, size_t n)
{
    if (n == 0) return 0;
    const struct tokenizer *t = tokenizers[data[0] % N_FILES];
    bool skip_special = data[0] & 0x80;
    int32_t ids[128];
    size_t n_ids = 0, n_out = 0;
    for (size_t i = 1; i + 1 < n && n_ids < 128; i += 2) /* a few ids that there are not, too */
        ids[n_ids++] = (data[i] | data[i + 1] << 8) % (int32_t)(tokenizer_vocab_size(t) + 3);

    struct buf whole = {0}, streamed = {0};
    struct text_stream s;
    struct err why;
    enum err_code rc = tokenizer_decode(t, ids, n_ids, skip_special, &whole, &why);
    text_stream_init(&s, t, skip_special);
    for (size_t i = 0; i < n_ids && !streamed.failed; i++) {
        text_stream_push(&s, ids[i], &streamed);
        if (streamed.failed || streamed.len == n_out) continue;
        FUZZ_CHECK(utf8_valid(streamed.data + n_out, streamed.len - n_out), "after id %zu", i);
        n_out = streamed.len;
    }
    text_stream_flush(&s, &streamed);
    text_stream_deinit(&s);
    if (streamed.failed) rc = ERR_EXHAUSTED;
    if (rc == ERR_OK)
        FUZZ_CHECK(whole.len == streamed.len &&
                       (whole.len == 0 || memcmp(whole.data, streamed.data, whole.len) == 0),
                   "'%.*s' decoded, '%.*s' streamed", (int)whole.len, whole.data, (int)streamed.len,
                   streamed.data);
    int answer = rc == ERR_OK          ? (int)whole.len
                 : rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY
                                       : -2 - (int)rc;
    buf_free(&whole);
    buf_free(&streamed);
    return answer;
}
