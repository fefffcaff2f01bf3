/* A text through a whole tokenizer and back is the same text, but for what each tokenizer's file says: invalid UTF-8
 * is U+FFFD, NFC composes, the SentencePiece space is a space. The first byte chooses the tokenizer. */
// links: text
// covers: coordinator/text/ids.c
// max_len: 512
#include <string.h>

#include "common/base/utf8.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/unicode.h"
#include "tests/fuzz/fuzz.h"

static const struct {
    const char *dir;
    bool composes;      /* NFC */
    const char *spaces; /* this too is written as a space */
} files[] = {
    {PROJECT_ROOT "/tests/data/models/tiny-mixtral", false, "\xE2\x96\x81"},
    {PROJECT_ROOT "/tests/data/models/tiny-qwen3_moe", true, NULL},
    {PROJECT_ROOT "/tests/data/models/tiny-olmoe", true, NULL},
    {PROJECT_ROOT "/deploy/demo", false, NULL},
};
#define N_FILES (sizeof files / sizeof files[0])

static struct tokenizer *tokenizers[N_FILES];

void fuzz_init(void)
{
    struct err why;
    for (size_t i = 0; i < N_FILES; i++)
        FUZZ_CHECK(tokenizer_open(files[i].dir, &tokenizers[i], &why) == ERR_OK, "%s", why.text);
}

/* What must come back. */
static void expected(size_t file, const char *text, size_t n, struct buf *out)
{
    struct buf valid = {0};
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        i += utf8_decode(text + i, n - i, &cp);
        buf_put_utf8(&valid, cp);
    }
    if (files[file].composes && !valid.failed && valid.len > 0) {
        unicode_normalize(UNICODE_NFC, valid.data, valid.len, out);
    } else if (files[file].spaces != NULL) {
        size_t space = strlen(files[file].spaces);
        for (size_t i = 0; i < valid.len && !valid.failed;) {
            bool hit =
                valid.len - i >= space && memcmp(valid.data + i, files[file].spaces, space) == 0;
            buf_putc(out, hit ? ' ' : valid.data[i]);
            i += hit ? space : 1;
        }
    } else if (valid.len > 0) {
        buf_append(out, valid.data, valid.len);
    }
    out->failed |= valid.failed;
    buf_free(&valid);
}

int fuzz_one(const uint8_t *data, size_t n)
{
    if (n == 0) return 0;
    size_t file = data[0] % N_FILES;
    const struct tokenizer *t = tokenizers[file];
    const char *text = (const char *)data + 1;
    n--;

    struct ids ids = {0}, special = {0};
    struct buf out = {0}, want = {0};
    struct err why;
    expected(file, text, n, &want);
    enum err_code rc =
        tokenizer_encode(t, text, n, TOKENIZER_ADD_NONE, TOKENIZER_NO_SPECIAL, &ids, &why);
    if (rc == ERR_OK) rc = tokenizer_decode(t, ids.data, ids.len, false, &out, &why);
    if (rc == ERR_OK)
        rc = tokenizer_encode(t, text, n, TOKENIZER_ADD_FILE, TOKENIZER_PARSE_SPECIAL, &special,
                              &why);
    if (want.failed) rc = ERR_EXHAUSTED;
    if (rc == ERR_OK) {
        FUZZ_CHECK(out.len == want.len &&
                       (out.len == 0 || memcmp(out.data, want.data, out.len) == 0),
                   "%s: '%.*s' came back as '%.*s'", files[file].dir, (int)want.len, want.data,
                   (int)out.len, out.data);
        for (size_t i = 0; i < ids.len; i++)
            FUZZ_CHECK(!tokenizer_is_special(t, ids.data[i]) ||
                           ids.data[i] == tokenizer_find(t, "<unk>", 5),
                       "control token %d out of a plain text", ids.data[i]);
    }
    int answer = rc == ERR_OK ? (int)ids.len : rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : -2 - (int)rc;
    ids_free(&ids);
    ids_free(&special);
    buf_free(&out);
    buf_free(&want);
    return answer;
}
