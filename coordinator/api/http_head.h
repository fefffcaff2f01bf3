/* http_head.h - the head of an HTTP/1.x request, strictly. Pure functions over bytes, any thread.
 *
 * The packaged parser was built lax: it takes bare line feeds, folded lines and control characters, all of which
 * proxies read differently and smugglers use. So a scanner of our own looks at every byte first, as it arrives, and
 * refuses at once what can never become a good head (a TLS hello, a bare LF). Only a whole head that passed goes
 * through libhttp_parser, which judges Content-Length, Transfer-Encoding and keep-alive. */
#ifndef MOESAIC_API_HTTP_HEAD_H
#define MOESAIC_API_HTTP_HEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/limits.h"
#include "coordinator/api/error_body.h"

enum http_scan_result { HTTP_SCAN_MORE, HTTP_SCAN_DONE, HTTP_SCAN_BAD };

/* Zero-initialised; one per head. */
struct http_scan {
    int state;
    size_t pos;        /* bytes looked at */
    size_t start;      /* offset of the request line, after empty lines */
    size_t line_start; /* offset of the present line */
    uint32_t n_fields;
};

/* Look at bytes[s->pos, n) of the same growing buffer. DONE: the head is [s->start, s->pos), up to and with its
 * empty line. BAD: *why says what and with which status. */
enum http_scan_result http_scan(struct http_scan *s, const char *bytes, size_t n,
                                struct fault *why);

struct http_field {
    const char *name, *value; /* 0-terminated, value trimmed */
};

struct http_head {
    const char *method; /* "GET" */
    char *path;         /* percent-decoded, without the query; starts with '/' */
    const char *query;  /* after '?', raw; "" if none */
    struct http_field fields[LIMIT_HTTP_HEADERS];
    uint32_t n_fields;
    int minor; /* HTTP/1.minor */
    bool keep_alive, chunked, has_length, expect_continue;
    uint64_t content_length;
};

/* Take apart a scanned head of n bytes; text[n] == 0, and the text is cut up in place: *out points into it.
 * Returns 0 or the status to refuse with (also in why->status). */
int http_head_parse(char *text, size_t n, struct http_head *out, struct fault *why);

/* Value of a field by name (any case), or NULL. */
const char *http_head_find(const struct http_head *h, const char *name);

#endif
