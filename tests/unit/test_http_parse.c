/* The strict head and chunk readers: tables of what is taken and what is refused, cut at every byte. */
// links: api
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "coordinator/api/http_chunks.h"
#include "coordinator/api/http_head.h"

/* Scan as if it arrived byte by byte. 0: wants more; -1: a good head; else the status. */
static int scan(const char *text, size_t n, struct http_scan *s)
{
    struct fault why;
    for (size_t i = 1; i <= n; i++) {
        enum http_scan_result r = http_scan(s, text, i, &why);
        if (r == HTTP_SCAN_BAD) return why.status;
        if (r == HTTP_SCAN_DONE) return -1;
    }
    return 0;
}

/* 0: taken; else the status it is refused with; -1: wants more. */
static int head_status(const char *text, struct http_head *out)
{
    static char copy[64 << 10];
    struct http_scan s = {0};
    struct fault why = {0};
    int scanned = scan(text, strlen(text), &s);
    if (scanned != -1) return scanned == 0 ? -1 : scanned;
    memcpy(copy, text + s.start, s.pos - s.start);
    copy[s.pos - s.start] = '\0';
    return http_head_parse(copy, s.pos - s.start, out, &why);
}

Test(http_head, takes_good_heads_and_refuses_the_rest)
{
    static const struct {
        const char *text;
        int status;
    } cases[] = {
        {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        {"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        {"GET / HTTP/1.0\r\n\r\n", 0},
        {"GET /a%20b?q=%zz HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", 0},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 0},
        {"POST / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n", 0},
        {"GET / HTTP/1.1\r\nHost: a\r\n", -1},
        /* smuggling: two opinions about the length */
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
         400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
         400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
         400},
        {"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nX: a\r\n Content-Length: 5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
        {"GET / HTTP/1.1\nHost: a\n\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHo\x01st: a\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\x01\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n: a\r\n\r\n", 400},
        /* hosts, versions, targets, methods */
        {"GET / HTTP/1.1\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400},
        {"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
        {"GET / HTTP/1.9\r\nHost: a\r\n\r\n", 505},
        {"GET /\r\nHost: a\r\n\r\n", 400},
        {"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400},
        {"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET /a%0ab HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET /a%4 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        {"FROB / HTTP/1.1\r\nHost: a\r\n\r\n", 501},
        {"\x16\x03\x01\x02", 400},
        {"\r\n\r\n\r\n\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417},
    };
    struct http_head head;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        cr_expect_eq(head_status(cases[i].text, &head), cases[i].status, "%s: %d, wanted %d",
                     cases[i].text, head_status(cases[i].text, &head), cases[i].status);
}

Test(http_head, tells_what_it_read)
{
    struct http_head h;
    cr_assert_eq(
        head_status(
            "POST /v1/mod%65ls?x=1 HTTP/1.1\r\nHOST: a \r\nContent-Length: 12\r\nExpect: 100-Continue\r\n"
            "Connection: close\r\n\r\n",
            &h),
        0);
    cr_expect_str_eq(h.method, "POST");
    cr_expect_str_eq(h.path, "/v1/models");
    cr_expect_str_eq(h.query, "x=1");
    cr_expect_str_eq(http_head_find(&h, "host"), "a");
    cr_expect_eq(h.content_length, 12);
    cr_expect(h.expect_continue && !h.keep_alive && !h.chunked && h.has_length);
    cr_assert_eq(head_status("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &h), 0);
    cr_expect(h.keep_alive && h.minor == 0);
    cr_assert_eq(
        head_status(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", &h),
        0);
}

Test(http_head, bounds_sizes_as_bytes_arrive)
{
    struct buf b = {0};
    struct http_scan s = {0};
    buf_puts(&b, "GET /");
    while (b.len < LIMIT_HTTP_URL_BYTES + 100)
        buf_putc(&b, 'a');
    cr_expect_eq(scan(b.data, b.len, &s), 414);
    buf_clear(&b);
    buf_puts(&b, "GET / HTTP/1.1\r\n");
    for (int i = 0; i < 70; i++)
        buf_printf(&b, "h%d: x\r\n", i);
    s = (struct http_scan){0};
    cr_expect_eq(scan(b.data, b.len, &s), 431);
    buf_clear(&b);
    buf_puts(&b, "GET / HTTP/1.1\r\nX: ");
    while (b.len < LIMIT_HTTP_HEAD_BYTES + 10)
        buf_putc(&b, 'a');
    s = (struct http_scan){0};
    cr_expect_eq(scan(b.data, b.len, &s), 431);
    buf_free(&b);
}

/* Feed in two pieces cut at `cut`. 0: complete; -1: wants more; else the status. */
static int chunks_status(const char *text, size_t cut, size_t max, struct buf *out, size_t *used)
{
    struct http_chunks c = {0};
    struct fault why;
    size_t n = strlen(text), first = cut < n ? cut : n;
    buf_clear(out);
    enum http_chunks_result r = http_chunks_feed(&c, text, first, max, out, used, &why);
    if (r == HTTP_CHUNKS_MORE) {
        size_t more;
        cr_assert_eq(*used, first);
        r = http_chunks_feed(&c, text + first, n - first, max, out, &more, &why);
        *used += more;
    }
    return r == HTTP_CHUNKS_DONE ? 0 : r == HTTP_CHUNKS_MORE ? -1 : why.status;
}

Test(http_chunks, decodes_good_bodies_wherever_they_are_cut)
{
    const char *text =
        "4\r\nWiki\r\n005;ext=\"1\"\r\npedia\r\nE\r\n in\r\n\r\nchunks.\r\n0\r\nTrailer: x\r\n\r\nGET";
    struct buf out = {0};
    size_t used;
    for (size_t cut = 0; cut <= strlen(text); cut++) {
        cr_assert_eq(chunks_status(text, cut, 100, &out, &used), 0, "cut at %zu", cut);
        cr_assert_str_eq(out.data, "Wikipedia in\r\n\r\nchunks.");
        cr_assert_eq(used, strlen(text) - 3);
    }
    buf_free(&out);
}

Test(http_chunks, refuses_malformed_ones_wherever_they_are_cut)
{
    static const struct {
        const char *text;
        int status;
    } cases[] = {
        {"\r\n", 400},
        {"x\r\n", 400},
        {"-1\r\n", 400},
        {"+1\r\n", 400},
        {"0x1\r\na\r\n0\r\n\r\n", 400},
        {" 1\r\na\r\n", 400},
        {"1 \r\na\r\n", 400},
        {"1\na\r\n", 400},
        {"1\r\nab\r\n", 400},
        {"1\r\na0\r\n\r\n", 400},
        {"1\r\na\n0\r\n\r\n", 400},
        {"1;a\nb\r\na\r\n", 400},
        {"1;\x01\r\na\r\n", 400},
        {"000000001\r\na\r\n", 400},
        {"fffffffff\r\n", 400},
        {"ffffffff\r\n", 413},
        {"65\r\n", 413},
        {"0\r\nA: b\n\r\n", 400},
        {"0\r\n A: b\r\n\r\n", 400},
        {"0\r\n\rx", 400},
    };
    struct buf out = {0};
    size_t used;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (size_t cut = 0; cut <= strlen(cases[i].text); cut++)
            cr_expect_eq(chunks_status(cases[i].text, cut, 100, &out, &used), cases[i].status,
                         "%s cut at %zu: %d", cases[i].text, cut,
                         chunks_status(cases[i].text, cut, 100, &out, &used));
    cr_expect_eq(chunks_status("64\r\n", 0, 100, &out, &used), -1, "exactly the limit is taken");
    buf_free(&out);
}

/* Change a few bytes of good input at random, from a fixed seed. */
static size_t mutate(const char *good, uint64_t round, char *out)
{
    static const char odd[] = "\r\n\t :;\0\x7f\xff"
                              "0f,%/?#";
    size_t n = strlen(good);
    memcpy(out, good, n);
    uint32_t r[4];
    for (uint32_t k = 0; k < 1 + round % 4; k++) {
        rng_philox(17, (uint32_t[4]){(uint32_t)round, k, 0, 0}, r);
        size_t at = r[0] % n;
        char c = r[1] % 2 != 0 ? odd[r[2] % (sizeof odd - 1)] : (char)(r[2] & 0xff);
        if (r[3] % 3 == 0) {
            out[at] = c;
        } else if (r[3] % 3 == 1) {
            memmove(out + at + 1, out + at, n - at);
            out[at] = c;
            n++;
        } else if (n > 1) {
            memmove(out + at, out + at + 1, n - at - 1);
            n--;
        }
    }
    return n;
}

Test(http_head, what_is_read_does_not_depend_on_the_cuts)
{
    static const char good[] =
        "POST /v1/x?q=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\nX-Y: z\r\n\r\n";
    char text[200], whole_copy[200];
    unsigned accepted = 0, refused = 0;
    for (uint64_t round = 0; round < 60000; round++) {
        size_t n = mutate(good, round, text);
        struct http_scan whole = {0}, pieces = {0};
        struct fault why = {0};
        enum http_scan_result r = http_scan(&whole, text, n, &why);
        int stepped = scan(text, n, &pieces);
        cr_assert_eq(r == HTTP_SCAN_BAD    ? why.status
                     : r == HTTP_SCAN_DONE ? -1
                                           : 0,
                     stepped, "round %llu", (unsigned long long)round);
        cr_assert_eq(whole.pos, pieces.pos);
        if (r != HTTP_SCAN_DONE) continue;
        size_t len = whole.pos - whole.start;
        memcpy(whole_copy, text + whole.start, len);
        whole_copy[len] = '\0';
        struct http_head h;
        if (http_head_parse(whole_copy, len, &h, &why) == 0) {
            accepted++;
            cr_assert_eq(h.path[0], '/');
            cr_assert(!(h.chunked && h.has_length));
        } else {
            refused++;
            cr_assert(why.status >= 400 && why.status < 600);
        }
    }
    cr_expect(accepted > 1000 && refused > 1000, "%u and %u", accepted, refused);
}

Test(http_chunks, what_is_read_does_not_depend_on_the_cuts)
{
    static const char good[] = "4\r\nWiki\r\n00a;x=y\r\n0123456789\r\n0\r\nT: u\r\n\r\n";
    char text[200];
    struct buf whole = {0}, pieces = {0};
    for (uint64_t round = 0; round < 60000; round++) {
        size_t n = mutate(good, round, text), used = 0, total = 0;
        struct http_chunks a = {0}, b = {0};
        struct fault why;
        buf_clear(&whole);
        buf_clear(&pieces);
        enum http_chunks_result ra = http_chunks_feed(&a, text, n, 50, &whole, &used, &why),
                                rb = HTTP_CHUNKS_MORE;
        for (size_t i = 0; i < n && rb == HTTP_CHUNKS_MORE; i++) {
            size_t one = 0;
            rb = http_chunks_feed(&b, text + i, 1, 50, &pieces, &one, &why);
            total += one;
        }
        cr_assert_eq(ra, rb, "round %llu", (unsigned long long)round);
        cr_assert_eq(used, total);
        cr_assert_eq(whole.len, pieces.len);
        cr_assert(whole.len == 0 || memcmp(whole.data, pieces.data, whole.len) == 0);
        cr_assert_leq(whole.len, 50);
    }
    buf_free(&whole);
    buf_free(&pieces);
}
