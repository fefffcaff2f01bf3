/* JSON from outside, as text and as a file: jansson's own reader agrees, and what was read and written again reads as
 * the same. */
// links: base
// covers: common/base/json.c
// max_len: 4096
#include <string.h>

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "tests/fuzz/fuzz.h"

#define FILE_MAX_BYTES 2048u

void fuzz_init(void) {}

/* Not JSON, or no memory: a file's faults have another code than a text's. */
static void check_file(const uint8_t *data, size_t n, enum err_code rc, const json_t *value)
{
    struct err why;
    json_t *again = NULL;
    char path[700];
    fuzz_put_file("text.json", data, n);
    snprintf(path, sizeof path, "%s/text.json", fuzz_dir());
    enum err_code file_rc = json_parse_file(path, FILE_MAX_BYTES, LIMIT_JSON_DEPTH, &again, &why);
    if (file_rc == ERR_EXHAUSTED) return;
    if (n > FILE_MAX_BYTES)
        FUZZ_CHECK(file_rc == ERR_TOO_LARGE, "%d for %zu bytes", (int)file_rc, n);
    else
        FUZZ_CHECK(rc == ERR_OK ? json_equal(value, again) : file_rc == ERR_CORRUPT,
                   "%d as a text, %d as a file", (int)rc, (int)file_rc);
    json_decref(again);
}

/* Three things differ by intent: the depth, integers beyond 64 bits, and a NUL, where jansson ends the text. */
static void check_reference(const uint8_t *data, size_t n, const json_t *value,
                            const struct err *why)
{
    if (n > 0 && memchr(data, 0, n) != NULL) return;
    json_error_t e;
    json_t *theirs = json_loadb((const char *)data, n,
                                JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY, &e);
    if (theirs != NULL)
        FUZZ_CHECK(value != NULL ? json_equal(value, theirs) : strstr(why->text, "deeper") != NULL,
                   "jansson reads it: %s", value != NULL ? "differs" : why->text);
    else if (json_error_code(&e) != json_error_numeric_overflow)
        FUZZ_CHECK(value == NULL, "jansson: %s", e.text);
    json_decref(theirs);
}

int fuzz_one(const uint8_t *data, size_t n)
{
    struct err why;
    json_t *value = NULL, *again = NULL;
    enum err_code rc = json_parse((const char *)data, n, LIMIT_JSON_DEPTH, &value, &why);
    if (rc == ERR_EXHAUSTED) return FUZZ_NO_MEMORY;
    FUZZ_CHECK(rc == ERR_OK || rc == ERR_INVALID, "%d", (int)rc);
    if (fuzz_calm()) check_reference(data, n, value, &why);
    check_file(data, n, rc, value);
    if (rc != ERR_OK) return (int)rc;

    char *text = json_to_text(value);
    int answer = text == NULL ? FUZZ_NO_MEMORY : (int)json_typeof(value);
    if (text != NULL) {
        rc = json_parse(text, strlen(text), LIMIT_JSON_DEPTH, &again, &why);
        if (rc == ERR_EXHAUSTED)
            answer = FUZZ_NO_MEMORY;
        else
            FUZZ_CHECK(rc == ERR_OK && json_equal(value, again), "%s: %s", text, why.text);
    }
    mem_free(text);
    json_decref(again);
    json_decref(value);
    return answer;
}
