#include "coordinator/api/http_head.h"

#include <http_parser.h>
#include <string.h>
#include <strings.h>

#define EMPTY_LINES_MAX   4u  /* RFC 9112 2.2 wants one to be ignored */
#define REQUEST_LINE_REST 40u /* method, blanks and version around the target */

enum state {
    AT_START,
    AT_START_LF,
    IN_REQUEST,
    AT_LF,
    AT_LINE,
    IN_NAME,
    IN_VALUE,
    AT_END_LF,
    AT_DONE
};

static bool is_token(unsigned char c)
{
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return true;
    return c != 0 && strchr("!#$%&'*+-.^_`|~", c) != NULL;
}

static enum http_scan_result bad(struct fault *why, int status, const char *text)
{
    fault_set(why, status, NULL, NULL, "%s", text);
    return HTTP_SCAN_BAD;
}

enum http_scan_result http_scan(struct http_scan *s, const char *bytes, size_t n, struct fault *why)
{
    for (; s->pos < n; s->pos++) {
        unsigned char c = (unsigned char)bytes[s->pos];
        if (s->state == AT_DONE) return HTTP_SCAN_DONE;
        if (s->pos - s->start >= LIMIT_HTTP_HEAD_BYTES) {
            fault_set(why, 431, NULL, NULL, "the request's head is longer than %u bytes",
                      LIMIT_HTTP_HEAD_BYTES);
            return HTTP_SCAN_BAD;
        }
        if (c == '\n' && s->state != AT_START_LF && s->state != AT_LF && s->state != AT_END_LF)
            return bad(why, 400, "a line of the head ends in LF without CR");
        switch ((enum state)s->state) {
        case AT_START:
            if (c == '\r') {
                s->state = AT_START_LF;
                break;
            }
            if (c == 0x16) return bad(why, 400, "this looks like TLS; the port speaks plain HTTP");
            if (!is_token(c)) return bad(why, 400, "the request does not start with a method");
            s->start = s->line_start = s->pos;
            s->state = IN_REQUEST;
            break;
        case AT_START_LF:
            if (c != '\n') return bad(why, 400, "CR without LF in the head");
            if (s->pos + 1 > 2 * EMPTY_LINES_MAX)
                return bad(why, 400, "too many empty lines before the request");
            s->state = AT_START;
            break;
        case IN_REQUEST:
            if (c == '\r')
                s->state = AT_LF;
            else if (c < 0x20 || c > 0x7e)
                return bad(why, 400, "a character that is not allowed in a request line");
            else if (s->pos - s->line_start > LIMIT_HTTP_URL_BYTES + REQUEST_LINE_REST) {
                fault_set(why, 414, NULL, NULL, "the request's URL is longer than %u bytes",
                          LIMIT_HTTP_URL_BYTES);
                return HTTP_SCAN_BAD;
            }
            break;
        case AT_LF:
            if (c != '\n') return bad(why, 400, "CR without LF in the head");
            s->state = AT_LINE;
            break;
        case AT_LINE:
            s->line_start = s->pos;
            if (c == '\r') {
                s->state = AT_END_LF;
                break;
            }
            if (c == ' ' || c == '\t') return bad(why, 400, "folded header lines are not accepted");
            if (++s->n_fields > LIMIT_HTTP_HEADERS) {
                fault_set(why, 431, NULL, NULL, "more than %u header fields", LIMIT_HTTP_HEADERS);
                return HTTP_SCAN_BAD;
            }
            if (!is_token(c))
                return bad(why, 400, "a character that is not allowed in a header name");
            s->state = IN_NAME;
            break;
        case IN_NAME:
            if (c == ':')
                s->state = IN_VALUE;
            else if (!is_token(c))
                return bad(why, 400, "a character that is not allowed in a header name");
            break;
        case IN_VALUE:
            if (c == '\r')
                s->state = AT_LF;
            else if ((c < 0x20 && c != '\t') || c == 0x7f)
                return bad(why, 400, "a control character in a header");
            break;
        case AT_END_LF:
            if (c != '\n') return bad(why, 400, "CR without LF in the head");
            s->state = AT_DONE;
            break;
        case AT_DONE:
            break;
        }
    }
    return s->state == AT_DONE ? HTTP_SCAN_DONE : HTTP_SCAN_MORE;
}

/* What only the parser's flags tell, read when the head is complete. */
struct verdict {
    bool complete, keep_alive, chunked;
    uint64_t content_length;
};

static int on_headers_complete(http_parser *p)
{
    struct verdict *v = p->data;
    v->complete = true;
    v->keep_alive = http_should_keep_alive(p) != 0;
    v->chunked = (p->flags & F_CHUNKED) != 0;
    v->content_length = p->content_length;
    return 0;
}

static int library_check(const char *text, size_t n, struct verdict *v, struct fault *why)
{
    http_parser p;
    http_parser_settings settings;
    http_parser_settings_init(&settings);
    settings.on_headers_complete = on_headers_complete;
    http_parser_init(&p, HTTP_REQUEST);
    p.data = v;
    http_parser_execute(&p, &settings, text, n);
    enum http_errno e = HTTP_PARSER_ERRNO(&p);
    if (e == HPE_INVALID_METHOD) return fault_set(why, 501, NULL, NULL, "unknown method");
    if (e != HPE_OK || !v->complete)
        return fault_set(why, 400, NULL, NULL, "malformed request: %s", http_errno_description(e));
    return 0;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool percent_decode(char *s)
{
    char *to = s;
    for (; *s != '\0'; s++) {
        if (*s != '%') {
            *to++ = *s;
            continue;
        }
        int high = hex_value(s[1]), low = high < 0 ? -1 : hex_value(s[2]);
        if (low < 0) return false;
        int c = high * 16 + low;
        if (c < 0x20 || c == 0x7f) return false;
        *to++ = (char)c;
        s += 2;
    }
    *to = '\0';
    return true;
}

static int parse_request_line(char *line, struct http_head *out, struct fault *why)
{
    char *target = strchr(line, ' ');
    char *version = target == NULL ? NULL : strchr(target + 1, ' ');
    if (version == NULL)
        return fault_set(why, 400, NULL, NULL, "the request line is not METHOD TARGET VERSION");
    *target++ = '\0';
    *version++ = '\0';
    if (strncmp(version, "HTTP/", 5) != 0 || strlen(version) != 8 || version[6] != '.')
        return fault_set(why, 400, NULL, NULL, "the request line does not end in an HTTP version");
    if (strcmp(version, "HTTP/1.1") != 0 && strcmp(version, "HTTP/1.0") != 0)
        return fault_set(why, 505, NULL, NULL,
                         "%.8s is not spoken here, only HTTP/1.1 and HTTP/1.0", version);
    out->minor = version[7] - '0';
    out->method = line;
    if (strlen(target) > LIMIT_HTTP_URL_BYTES)
        return fault_set(why, 414, NULL, NULL, "the request's URL is longer than %u bytes",
                         LIMIT_HTTP_URL_BYTES);
    if (target[0] != '/' || strchr(target, '#') != NULL)
        return fault_set(why, 400, NULL, NULL, "the request target is not a path");
    char *query = strchr(target, '?');
    if (query != NULL) *query++ = '\0';
    out->query = query == NULL ? "" : query;
    out->path = target;
    if (!percent_decode(target))
        return fault_set(why, 400, NULL, NULL, "a bad percent escape in the path");
    return 0;
}

static void split_field(char *line, struct http_field *f)
{
    char *colon = strchr(line, ':'); /* the scanner saw one */
    *colon = '\0';
    char *value = colon + 1;
    value += strspn(value, " \t");
    size_t n = strlen(value);
    while (n > 0 && (value[n - 1] == ' ' || value[n - 1] == '\t'))
        value[--n] = '\0';
    *f = (struct http_field){line, value};
}

static uint32_t count(const struct http_head *h, const char *name)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < h->n_fields; i++)
        n += strcasecmp(h->fields[i].name, name) == 0;
    return n;
}

static int check_fields(struct http_head *out, struct fault *why)
{
    uint32_t hosts = count(out, "Host");
    if (hosts > 1 || (hosts == 0 && out->minor == 1))
        return fault_set(why, 400, NULL, NULL, "%u Host headers where there must be one", hosts);
    uint32_t lengths = count(out, "Content-Length"), codings = count(out, "Transfer-Encoding");
    if (lengths > 1 || codings > 1 || lengths + codings > 1)
        return fault_set(why, 400, NULL, NULL, "more than one header says how long the body is");
    if (codings == 1) {
        const char *coding = http_head_find(out, "Transfer-Encoding");
        if (out->minor == 0 || !out->chunked || strcasecmp(coding, "chunked") != 0)
            return fault_set(why, 400, NULL, NULL,
                             "the only transfer coding taken is chunked, in HTTP/1.1");
    }
    out->has_length = lengths == 1;
    if (!out->has_length) out->content_length = 0;
    const char *expect = http_head_find(out, "Expect");
    if (expect != NULL && out->minor == 1) {
        if (strcasecmp(expect, "100-continue") != 0)
            return fault_set(why, 417, NULL, NULL, "the only expectation met is 100-continue");
        out->expect_continue = true;
    }
    return 0;
}

int http_head_parse(char *text, size_t n, struct http_head *out, struct fault *why)
{
    /* The request line first, so that HTTP/2.0 gets its own answer and not "malformed". */
    *out = (struct http_head){0};
    struct verdict v = {0};
    char *eol = memchr(text, '\r', n);
    if (eol == NULL) return fault_set(why, 400, NULL, NULL, "the request has no line end");
    /* The library needs the text whole, so it goes before we cut; its verdict is used after the line's own. */
    int library = library_check(text, n, &v, why);
    struct fault library_why = *why;
    *eol = '\0';
    int status = parse_request_line(text, out, why);
    if (status != 0) return status;
    if (library != 0) {
        *why = library_why;
        return library;
    }
    for (char *line = eol + 2; line < text + n && *line != '\r';) {
        eol = memchr(line, '\r', (size_t)(text + n - line));
        if (eol == NULL || out->n_fields == LIMIT_HTTP_HEADERS)
            return fault_set(why, 400, NULL, NULL, "malformed request: header lines");
        *eol = '\0';
        split_field(line, &out->fields[out->n_fields++]);
        line = eol + 2;
    }
    out->keep_alive = v.keep_alive;
    out->chunked = v.chunked;
    out->content_length = v.content_length;
    return check_fields(out, why);
}

const char *http_head_find(const struct http_head *h, const char *name)
{
    for (uint32_t i = 0; i < h->n_fields; i++)
        if (strcasecmp(h->fields[i].name, name) == 0) return h->fields[i].value;
    return NULL;
}
