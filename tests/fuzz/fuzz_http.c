/* The bytes of a connection: a head, and its body when that is chunked. However they are cut on the way, the verdict
 * is the same, at the same byte, with the same body. */
// links: api
// covers: coordinator/api/http_head.c coordinator/api/http_chunks.c
// max_len: 1024
#include <string.h>

#include "common/base/mem.h"
#include "coordinator/api/http_chunks.h"
#include "coordinator/api/http_conn.h"
#include "coordinator/api/http_head.h"
#include "tests/fuzz/fuzz.h"

#define BODY_MAX_BYTES 200u

void fuzz_init(void) {}

struct verdict {
    int result;
    size_t used;
    struct fault why;
};

static struct verdict scan(const char *bytes, size_t n, struct fuzz_dice *dice)
{
    struct verdict v = {.result = HTTP_SCAN_MORE};
    struct http_scan s = {0};
    for (size_t seen = 0; v.result == HTTP_SCAN_MORE && seen < n;) {
        size_t left = n - seen;
        seen += dice == NULL ? left : 1 + fuzz_below(dice, left < 40 ? (uint32_t)left : 40);
        v.result = (int)http_scan(&s, bytes, seen, &v.why);
    }
    v.used = s.pos;
    return v;
}

static struct verdict take_body(const char *bytes, size_t n, struct fuzz_dice *dice,
                                struct buf *out)
{
    struct verdict v = {.result = HTTP_CHUNKS_MORE};
    struct http_chunks c = {0};
    while (v.result == HTTP_CHUNKS_MORE && v.used < n) {
        size_t left = n - v.used, used = 0;
        size_t give = dice == NULL ? left : 1 + fuzz_below(dice, left < 40 ? (uint32_t)left : 40);
        v.result =
            (int)http_chunks_feed(&c, bytes + v.used, give, BODY_MAX_BYTES, out, &used, &v.why);
        FUZZ_CHECK(used <= give && (used == give || v.result != HTTP_CHUNKS_MORE), "%zu of %zu",
                   used, give);
        v.used += used;
    }
    FUZZ_CHECK(out->len <= BODY_MAX_BYTES, "a body of %zu bytes", out->len);
    return v;
}

static void check_same(const struct verdict *a, const struct verdict *b, int bad)
{
    FUZZ_CHECK(a->result == b->result && a->used == b->used, "%d at %zu whole, %d at %zu in pieces",
               a->result, a->used, b->result, b->used);
    if (a->result == bad)
        FUZZ_CHECK(a->why.status == b->why.status && strcmp(a->why.text, b->why.text) == 0,
                   "%s; %s", a->why.text, b->why.text);
}

static int check_body(const char *bytes, size_t n, struct fuzz_dice *dice)
{
    struct buf whole = {0}, pieces = {0};
    struct verdict a = take_body(bytes, n, NULL, &whole), b = take_body(bytes, n, dice, &pieces);
    bool failed = whole.failed || pieces.failed;
    if (!failed) {
        check_same(&a, &b, HTTP_CHUNKS_BAD);
        FUZZ_CHECK(whole.len == pieces.len &&
                       (whole.len == 0 || memcmp(whole.data, pieces.data, whole.len) == 0),
                   "bodies of %zu and %zu bytes", whole.len, pieces.len);
    }
    buf_free(&whole);
    buf_free(&pieces);
    return failed ? FUZZ_NO_MEMORY : 1000 * (a.result + 1) + (int)a.used;
}

int fuzz_one(const uint8_t *data, size_t n)
{
    const char *bytes = (const char *)data;
    struct fuzz_dice dice = fuzz_dice(data, n);
    struct http_scan s = {0};
    struct verdict whole = scan(bytes, n, NULL), pieces = scan(bytes, n, &dice);
    check_same(&whole, &pieces, HTTP_SCAN_BAD);
    if (whole.result != HTTP_SCAN_DONE) return whole.result;

    http_scan(&s, bytes, n, &whole.why);
    size_t n_head = s.pos - s.start;
    char *text = mem_strndup(bytes + s.start, n_head);
    if (text == NULL) return FUZZ_NO_MEMORY;
    struct http_head head;
    struct fault why;
    int status = http_head_parse(text, n_head, &head, &why);
    FUZZ_CHECK(status == 0 || (status >= 400 && status < 600), "%d", status);
    if (status == 0) {
        FUZZ_CHECK(head.path[0] == '/' && !(head.chunked && head.has_length), "%s", head.path);
        FUZZ_CHECK(head.n_fields == s.n_fields, "%u fields, %u seen", head.n_fields, s.n_fields);
        const char *host = http_head_find(&head, "Host");
        if (host != NULL) status = http_host_is_local(host, "box.example:80, [::2]:8080");
        if (head.chunked) status = check_body(bytes + s.pos, n - s.pos, &dice);
    }
    mem_free(text);
    return status;
}
