#include "coordinator/cli/http_client.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/options.h"

#define BODY_MOST (64u << 20)

struct reader {
    int fd;
    uint64_t deadline_us; /* UINT64_MAX: none */
    const volatile int *stop;
    struct buf in;
    bool eof;
};

static enum err_code dial(const char *server, int *fd, char host_header[300], struct err *why)
{
    char host[256], port[16];
    unsigned number;
    if (strncmp(server, "http://", 7) == 0) server += 7;
    char copy[300];
    snprintf(copy, sizeof copy, "%s", server);
    copy[strcspn(copy, "/")] = '\0';
    enum err_code rc = options_address(copy, "127.0.0.1", 8080, host, &number, why);
    if (rc != ERR_OK) return rc;
    snprintf(port, sizeof port, "%u", number);
    snprintf(host_header, 300, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
    int e = getaddrinfo(host, port, &hints, &list);
    if (e != 0) return err_set(why, ERR_UNAVAILABLE, "%s: %s", host_header, gai_strerror(e));
    *fd = -1;
    int saved = 0;
    for (struct addrinfo *a = list; a != NULL && *fd < 0; a = a->ai_next) {
        int s = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (s < 0) continue;
        if (connect(s, a->ai_addr, a->ai_addrlen) == 0) {
            *fd = s;
        } else {
            saved = errno;
            close(s);
        }
    }
    freeaddrinfo(list);
    if (*fd >= 0) return ERR_OK;
    return err_set(why, ERR_UNAVAILABLE, "no server at %s: %s; start one with `moesaic up MODEL`",
                   host_header, strerror(saved));
}

/* More bytes into r->in; false at the end of the stream or on an error (why is set then). */
static enum err_code more(struct reader *r, struct err *why)
{
    for (;;) {
        if (r->stop != NULL && *r->stop) return err_set(why, ERR_CANCELLED, "stopped");
        uint64_t now = clock_now_us();
        if (now >= r->deadline_us)
            return err_set(why, ERR_TIMEOUT, "the server did not answer in time");
        struct pollfd p = {r->fd, POLLIN, 0};
        int n = poll(&p, 1, 100);
        if (n <= 0) continue;
        char chunk[16384];
        ssize_t got = read(r->fd, chunk, sizeof chunk);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return err_set(why, ERR_UNAVAILABLE, "the connection broke: %s", strerror(errno));
        r->eof = got == 0;
        buf_append(&r->in, chunk, (size_t)got);
        if (r->in.failed || r->in.len > BODY_MOST)
            return err_set(why, ERR_TOO_LARGE, "the answer is too large");
        return ERR_OK;
    }
}

/* One line without its CRLF, cut out of r->in into `line`. */
static enum err_code read_line(struct reader *r, struct buf *line, struct err *why)
{
    for (;;) {
        char *end = r->in.len > 0 ? memchr(r->in.data, '\n', r->in.len) : NULL;
        if (end != NULL) {
            size_t n = (size_t)(end - r->in.data);
            buf_clear(line);
            buf_append(line, r->in.data, n > 0 && end[-1] == '\r' ? n - 1 : n);
            buf_consume(&r->in, n + 1);
            return ERR_OK;
        }
        if (r->eof) return err_set(why, ERR_UNAVAILABLE, "the server closed the connection");
        enum err_code rc = more(r, why);
        if (rc != ERR_OK) return rc;
    }
}

static enum err_code read_exactly(struct reader *r, size_t n, struct buf *to, struct err *why)
{
    while (r->in.len < n) {
        if (r->eof) return err_set(why, ERR_UNAVAILABLE, "the server closed the connection early");
        enum err_code rc = more(r, why);
        if (rc != ERR_OK) return rc;
    }
    buf_append(to, r->in.data, n);
    buf_consume(&r->in, n);
    return ERR_OK;
}

struct head {
    int status;
    bool chunked, events;
    long long length; /* -1: to the end */
};

static enum err_code read_head(struct reader *r, struct head *h, struct err *why)
{
    struct buf line = {0};
    *h = (struct head){.length = -1};
    enum err_code rc = read_line(r, &line, why);
    if (rc == ERR_OK && (line.len < 12 || sscanf(line.data, "HTTP/1.%*c %d", &h->status) != 1))
        rc = err_set(why, ERR_MISMATCH, "this is no HTTP server: %.60s", line.data);
    while (rc == ERR_OK && (rc = read_line(r, &line, why)) == ERR_OK && line.len > 0) {
        if (strncasecmp(line.data, "content-length:", 15) == 0) h->length = atoll(line.data + 15);
        if (strncasecmp(line.data, "transfer-encoding:", 18) == 0)
            h->chunked = strstr(line.data, "chunked") != NULL;
        if (strncasecmp(line.data, "content-type:", 13) == 0)
            h->events = strstr(line.data, "text/event-stream") != NULL;
    }
    buf_free(&line);
    return rc;
}

/* The next piece of body into `to`; *end when there is no more. */
static enum err_code read_piece(struct reader *r, struct head *h, struct buf *to, bool *end,
                                struct err *why)
{
    enum err_code rc = ERR_OK;
    if (h->chunked) {
        struct buf line = {0};
        rc = read_line(r, &line, why);
        size_t n = rc == ERR_OK ? (size_t)strtoull(line.data, NULL, 16) : 0;
        if (rc == ERR_OK) rc = read_exactly(r, n, to, why);
        if (rc == ERR_OK) rc = read_line(r, &line, why);
        *end = n == 0;
        buf_free(&line);
        return rc;
    }
    if (h->length >= 0) {
        *end = true;
        return read_exactly(r, (size_t)h->length, to, why);
    }
    if (r->in.len == 0 && !r->eof) rc = more(r, why);
    buf_append(to, r->in.data != NULL ? r->in.data : "", r->in.len);
    buf_consume(&r->in, r->in.len);
    *end = r->eof;
    return rc;
}

static enum err_code send_request(int fd, const char *host, const char *path, const char *body,
                                  struct err *why)
{
    struct buf b = {0};
    buf_printf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n",
               body != NULL ? "POST" : "GET", path, host);
    if (body != NULL)
        buf_printf(&b, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                   strlen(body), body);
    else
        buf_puts(&b, "\r\n");
    enum err_code rc = b.failed ? err_nomem(why, "a request") : ERR_OK;
    for (size_t done = 0; rc == ERR_OK && done < b.len;) {
        ssize_t n = send(fd, b.data + done, b.len - done, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR)
            rc = err_set(why, ERR_UNAVAILABLE, "send: %s", strerror(errno));
        if (n > 0) done += (size_t)n;
    }
    buf_free(&b);
    return rc;
}

/* Take whole lines out of `text`; false when the caller of on_data has enough. */
static bool take_events(struct buf *text, bool (*on_data)(void *, const char *, size_t), void *ctx)
{
    for (char *end; text->len > 0 && (end = memchr(text->data, '\n', text->len)) != NULL;) {
        size_t n = (size_t)(end - text->data), skip = n + 1;
        bool go_on = true;
        if (n > 6 && memcmp(text->data, "data: ", 6) == 0)
            go_on = on_data(ctx, text->data + 6, n - 6);
        buf_consume(text, skip);
        if (!go_on) return false;
    }
    return true;
}

enum err_code http_client_stream(const char *server, const char *path, const char *body,
                                 bool (*on_data)(void *ctx, const char *data, size_t n), void *ctx,
                                 const volatile int *stop, struct http_answer *out, struct err *why)
{
    char host[300];
    struct reader r = {.fd = -1, .deadline_us = UINT64_MAX, .stop = stop};
    struct head h = {0};
    struct buf text = {0};
    *out = (struct http_answer){0};
    enum err_code rc = dial(server, &r.fd, host, why);
    if (rc == ERR_OK) rc = send_request(r.fd, host, path, body, why);
    if (rc == ERR_OK) rc = read_head(&r, &h, why);
    out->status = h.status;
    for (bool end = false; rc == ERR_OK && !end;) {
        rc = read_piece(&r, &h, h.events ? &text : &out->body, &end, why);
        if (h.events && !take_events(&text, on_data, ctx)) break;
    }
    if (r.fd >= 0) close(r.fd);
    buf_free(&r.in);
    buf_free(&text);
    return rc;
}

enum err_code http_client_request(const char *server, const char *path, const char *body,
                                  unsigned timeout_ms, struct http_answer *out, struct err *why)
{
    char host[300];
    struct reader r = {.fd = -1, .deadline_us = clock_now_us() + (uint64_t)timeout_ms * 1000};
    struct head h = {0};
    *out = (struct http_answer){0};
    enum err_code rc = dial(server, &r.fd, host, why);
    if (rc == ERR_OK) rc = send_request(r.fd, host, path, body, why);
    if (rc == ERR_OK) rc = read_head(&r, &h, why);
    for (bool end = false; rc == ERR_OK && !end;)
        rc = read_piece(&r, &h, &out->body, &end, why);
    out->status = h.status;
    if (r.fd >= 0) close(r.fd);
    buf_free(&r.in);
    if (rc != ERR_OK) buf_free(&out->body);
    return rc;
}
