#include "coordinator/api/http_conn.h"

#include <http_parser.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/mem.h"

#define STALL_MIN_BYTES 4096u /* a reader slower than this per stall window loses its place */
#define HTTP_DATE_MAX   40

static void process(struct http_conn *c);

static uint64_t now_ms(const struct http_conn *c)
{
    return uv_now(c->server->loop);
}

static size_t unsent(const struct http_conn *c)
{
    return uv_stream_get_write_queue_size((const uv_stream_t *)&c->tcp);
}

/* ---- closing ---- */

static void exchange_clear(struct http_conn *c)
{
    c->server->bodies_bytes -= c->body_counted;
    c->body_counted = 0;
    mem_free(c->ex.head_text);
    buf_free(&c->ex.body);
    c->ex = (struct http_exchange){0};
}

static void on_closed(uv_handle_t *h)
{
    struct http_conn *c = h->data;
    if (c->ex.active && c->ex.on_gone != NULL) c->ex.on_gone(c->ex.ctx);
    exchange_clear(c);
    buf_free(&c->in);
    http_server_forget(c->server, c);
}

void http_conn_close(struct http_conn *c)
{
    if (c->state == CONN_CLOSING) return;
    c->state = CONN_CLOSING;
    uv_close((uv_handle_t *)&c->tcp, on_closed);
}

static void on_shutdown(uv_shutdown_t *r, int status)
{
    struct http_conn *c = r->data;
    if (c->state == CONN_CLOSING) return;
    c->shut = true;
    c->since_ms = now_ms(c);
    if (status != 0 || c->eof) http_conn_close(c);
}

/* The last reply is on its way: close our side after it and drop what still comes, since closing with unread input
 * would reset the connection and could destroy the reply. */
static void linger(struct http_conn *c)
{
    if (c->state == CONN_CLOSING || c->state == CONN_LINGER) return;
    exchange_clear(c);
    buf_free(&c->in);
    c->state = CONN_LINGER;
    c->since_ms = now_ms(c);
    c->shutdown.data = c;
    if (uv_shutdown(&c->shutdown, (uv_stream_t *)&c->tcp, on_shutdown) != 0) http_conn_close(c);
}

/* ---- output ---- */

struct pending_write {
    uv_write_t req;
    char bytes[];
};

static void on_written(uv_write_t *w, int status)
{
    struct http_conn *c = w->handle->data;
    mem_free(w->data);
    if (c->state == CONN_CLOSING) return;
    if (status != 0) {
        http_conn_close(c);
        return;
    }
    if (unsent(c) > LIMIT_HTTP_UNSENT_MARK) return;
    if (c->ex.active && c->ex.was_full) {
        c->ex.was_full = false;
        if (c->ex.on_drained != NULL) c->ex.on_drained(c->ex.ctx);
    }
    if (c->state == CONN_HEAD) process(c);
}

/* What the kernel takes at once costs no allocation; only the rest is copied. */
static void send_parts(struct http_conn *c, const uv_buf_t *parts, unsigned n)
{
    if (c->state == CONN_CLOSING) return;
    size_t total = 0;
    for (unsigned i = 0; i < n; i++)
        total += parts[i].len;
    if (unsent(c) == 0) c->window_ms = now_ms(c), c->window_sent = c->written;
    c->written += total;
    int taken = unsent(c) > 0 ? UV_EAGAIN : uv_try_write((uv_stream_t *)&c->tcp, parts, n);
    if (taken < 0 && taken != UV_EAGAIN) {
        http_conn_close(c);
        return;
    }
    size_t skip = taken < 0 ? 0 : (size_t)taken;
    if (skip == total) return;
    struct pending_write *w = mem_alloc(sizeof *w + total - skip);
    if (w == NULL) {
        http_conn_close(c);
        return;
    }
    size_t at = 0, left = total - skip;
    for (unsigned i = 0; i < n; i++) {
        size_t drop = skip < parts[i].len ? skip : parts[i].len;
        skip -= drop;
        memcpy(w->bytes + at, parts[i].base + drop, parts[i].len - drop);
        at += parts[i].len - drop;
    }
    w->req.data = w;
    uv_buf_t rest = uv_buf_init(w->bytes, (unsigned)left);
    if (uv_write(&w->req, (uv_stream_t *)&c->tcp, &rest, 1, on_written) != 0) {
        mem_free(w);
        http_conn_close(c);
    }
}

static uv_buf_t part(const void *bytes, size_t n)
{
    union { /* libuv only reads it; its type says otherwise */
        const void *in;
        char *out;
    } cast = {bytes};
    return uv_buf_init(cast.out, (unsigned)n);
}

static void put_date(struct buf *b)
{
    static const char *const days[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    time_t t = (time_t)clock_unix_seconds();
    struct tm tm;
    if (gmtime_r(&t, &tm) == NULL) return;
    buf_printf(b, "Date: %s, %02d %s %d %02d:%02d:%02d GMT\r\n", days[tm.tm_wday], tm.tm_mday,
               months[tm.tm_mon], tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
}

static struct http_conn *conn_of(struct http_exchange *ex)
{
    return (struct http_conn *)((char *)ex - offsetof(struct http_conn, ex));
}

static void put_head(struct http_conn *c, struct buf *b, int status, const char *type,
                     const char *extra)
{
    buf_printf(b, "HTTP/1.1 %d %s\r\n", status, http_status_str((enum http_status)status));
    put_date(b);
    if (type != NULL) buf_printf(b, "Content-Type: %s\r\n", type);
    if (c->ex.request_id[0] != '\0') buf_printf(b, "X-Request-Id: %s\r\n", c->ex.request_id);
    buf_puts(b, "X-Content-Type-Options: nosniff\r\n");
    if (extra != NULL) buf_puts(b, extra);
    if (c->last)
        buf_puts(b, "Connection: close\r\n");
    else if (c->ex.head.minor == 0)
        buf_puts(b, "Connection: keep-alive\r\n");
    if (c->server->cfg.on_status != NULL) c->server->cfg.on_status(c->server->cfg.ctx, status);
}

static void send_whole(struct http_conn *c, int status, const char *type, const char *extra,
                       const void *body, size_t n)
{
    struct buf head = {0};
    put_head(c, &head, status, type, extra);
    buf_printf(&head, "Content-Length: %zu\r\n\r\n", n);
    if (head.failed) {
        http_conn_close(c);
    } else {
        uv_buf_t parts[2] = {part(head.data, head.len), part(body, n)};
        send_parts(c, parts, c->ex.head_only || n == 0 ? 1 : 2);
    }
    buf_free(&head);
}

/* The exchange is over: close, or go on with the next request. */
static void finish(struct http_conn *c)
{
    if (c->state == CONN_CLOSING) {
        c->ex.active = false; /* ended by the application: no on_gone */
        return;
    }
    exchange_clear(c);
    if (c->last || c->server->draining) {
        linger(c);
        return;
    }
    c->state = CONN_HEAD;
    c->since_ms = now_ms(c);
    if (!c->processing) process(c);
}

/* The HTTP layer's own answer; what else the client sends cannot be trusted to be framed. */
static void refuse(struct http_conn *c, const struct fault *f)
{
    struct buf b = {0};
    c->last = true;
    error_body_put(&b, f);
    if (b.failed)
        http_conn_close(c);
    else
        send_whole(c, f->status, "application/json", error_headers(f->status), b.data, b.len);
    buf_free(&b);
    linger(c);
}

/* ---- input ---- */

static void take_request_id(struct http_conn *c)
{
    const char *given = http_head_find(&c->ex.head, "X-Request-Id");
    if (given != NULL && given[0] != '\0' && strlen(given) < sizeof c->ex.request_id) {
        size_t ok =
            strspn(given, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:");
        if (given[ok] == '\0') {
            memcpy(c->ex.request_id, given, ok + 1);
            return;
        }
    }
    snprintf(c->ex.request_id, sizeof c->ex.request_id, "req-%016llx",
             (unsigned long long)c->server->next_id++);
}

static int check_request(struct http_conn *c, struct fault *why)
{
    const struct http_head *h = &c->ex.head;
    const struct http_server *s = c->server;
    const char *host = http_head_find(h, "Host");
    if (s->only_loopback && host != NULL && !http_host_is_local(host, s->addresses))
        return fault_set(
            why, 403, "host_not_allowed", NULL,
            "the Host header names '%.100s'; this server is bound to loopback and answers to localhost only",
            host);
    if (h->content_length > LIMIT_HTTP_BODY_BYTES)
        return fault_set(why, 413, NULL, NULL, "a body of %llu bytes; the limit is %u",
                         (unsigned long long)h->content_length, LIMIT_HTTP_BODY_BYTES);
    return 0;
}

/* A whole head is there: 0, or refused. */
static int begin_request(struct http_conn *c)
{
    struct fault why;
    size_t start = c->scan.start, n = c->scan.pos - start;
    c->ex.head_text = mem_strndup(c->in.data + start, n);
    buf_consume(&c->in, c->scan.pos);
    c->scan = (struct http_scan){0};
    if (c->ex.head_text == NULL) {
        http_conn_close(c);
        return 1;
    }
    int status = http_head_parse(c->ex.head_text, n, &c->ex.head, &why);
    if (status == 0) {
        take_request_id(c);
        c->ex.head_only = strcmp(c->ex.head.method, "HEAD") == 0;
        c->last = !c->ex.head.keep_alive || c->server->draining;
        status = check_request(c, &why);
    }
    if (status != 0) {
        refuse(c, &why);
        return status;
    }
    bool wants_body = c->ex.head.chunked || c->ex.head.content_length > 0;
    if (c->ex.head.expect_continue && wants_body && c->in.len == 0) {
        uv_buf_t go_on = part("HTTP/1.1 100 Continue\r\n\r\n", 25);
        send_parts(c, &go_on, 1);
    }
    if (c->state == CONN_CLOSING) return 1;
    c->state = CONN_BODY;
    c->since_ms = now_ms(c);
    return 0;
}

/* Take body bytes from the input. 1: complete; 0: more to come; -1: refused or closed. */
static int collect_body(struct http_conn *c)
{
    struct http_exchange *ex = &c->ex;
    struct fault why;
    size_t used = 0;
    bool complete;
    if (ex->head.chunked) {
        enum http_chunks_result r = http_chunks_feed(&ex->chunks, c->in.data, c->in.len,
                                                     LIMIT_HTTP_BODY_BYTES, &ex->body, &used, &why);
        if (r == HTTP_CHUNKS_BAD) {
            refuse(c, &why);
            return -1;
        }
        complete = r == HTTP_CHUNKS_DONE;
    } else {
        uint64_t missing = ex->head.content_length - ex->body.len;
        used = c->in.len < missing ? c->in.len : (size_t)missing;
        buf_append(&ex->body, c->in.data, used);
        complete = used == missing;
    }
    buf_consume(&c->in, used);
    struct http_server *s = c->server;
    s->bodies_bytes += ex->body.len - c->body_counted;
    c->body_counted = ex->body.len;
    if (ex->body.failed || s->bodies_bytes > s->cfg.bodies_bytes) {
        fault_set(&why, 503, "overloaded", NULL,
                  "too many request bodies are under way; try again");
        refuse(c, &why);
        return -1;
    }
    return complete;
}

static void dispatch(struct http_conn *c)
{
    c->state = CONN_REPLY;
    c->ex.active = true;
    c->since_ms = now_ms(c);
    c->server->cfg.on_request(c->server->cfg.ctx, &c->ex);
}

/* Take as many requests from the input as can be answered now. */
static void process(struct http_conn *c)
{
    struct fault why;
    c->processing = true;
    while (c->state == CONN_HEAD || c->state == CONN_BODY) {
        if (c->state == CONN_HEAD) {
            /* A client that pipelines and does not read must not make us grow. */
            if (c->in.len == 0 || unsent(c) > LIMIT_HTTP_UNSENT_MARK) break;
            if (c->scan.pos == 0) c->since_ms = now_ms(c);
            enum http_scan_result r = http_scan(&c->scan, c->in.data, c->in.len, &why);
            if (r == HTTP_SCAN_MORE) break;
            if (r == HTTP_SCAN_BAD)
                refuse(c, &why);
            else
                begin_request(c);
        } else {
            int complete = collect_body(c);
            if (complete == 0) break;
            if (complete > 0) dispatch(c);
        }
    }
    c->processing = false;
    if (c->in.len == 0) buf_free(&c->in); /* idle connections and streams hold no input buffer */
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *out)
{
    (void)suggested;
    struct http_conn *c = h->data;
    *out = uv_buf_init(c->server->read_buffer, HTTP_READ_BYTES);
}

static void on_eof(struct http_conn *c)
{
    c->eof = true;
    if (c->state == CONN_LINGER) {
        if (c->shut) http_conn_close(c);
    } else if (c->state == CONN_HEAD && unsent(c) > 0) {
        linger(c); /* complete replies are still on their way */
    } else {
        http_conn_close(c);
    }
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *bytes)
{
    struct http_conn *c = stream->data;
    if (n == 0 || c->state == CONN_CLOSING) return;
    if (n == UV_EOF) {
        on_eof(c);
        return;
    }
    if (n < 0) {
        http_conn_close(c);
        return;
    }
    if (c->state == CONN_LINGER) return;
    buf_append(&c->in, bytes->base, (size_t)n);
    bool waiting =
        c->state == CONN_REPLY || (c->state == CONN_HEAD && unsent(c) > LIMIT_HTTP_UNSENT_MARK);
    if (c->in.failed || (waiting && c->in.len > LIMIT_HTTP_PIPELINED_BYTES)) {
        http_conn_close(c);
        return;
    }
    if (!waiting) process(c);
}

void http_conn_accepted(struct http_conn *c, bool too_many)
{
    c->since_ms = c->window_ms = now_ms(c);
    uv_tcp_nodelay(&c->tcp, 1);
    if (uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read) != 0) {
        http_conn_close(c);
        return;
    }
    if (too_many) {
        struct fault why;
        fault_set(&why, 503, "overloaded", NULL, "too many connections");
        refuse(c, &why);
    }
}

/* ---- time ---- */

static bool stalled(struct http_conn *c, uint64_t now)
{
    size_t queued = unsent(c);
    uint64_t sent = c->written - queued;
    if (queued == 0) {
        c->window_ms = now;
        c->window_sent = sent;
        return false;
    }
    if (now - c->window_ms < c->server->cfg.stalled_ms) return false;
    bool slow = sent - c->window_sent < STALL_MIN_BYTES;
    c->window_ms = now;
    c->window_sent = sent;
    return slow;
}

static void time_out(struct http_conn *c, const char *what, uint32_t limit_ms)
{
    struct fault why;
    fault_set(&why, 408, "timeout", NULL, "the request's %s did not arrive within %u ms", what,
              limit_ms);
    refuse(c, &why);
}

void http_conn_tick(struct http_conn *c, uint64_t now)
{
    const struct http_cfg *cfg = &c->server->cfg;
    if (c->state == CONN_CLOSING) return;
    if (stalled(c, now)) {
        http_conn_close(c);
        return;
    }
    uint64_t waited = now - c->since_ms;
    switch (c->state) {
    case CONN_HEAD:
        if (unsent(c) > 0)
            c->since_ms = now; /* the client has yet to read: the stall rule judges that */
        else if (c->in.len == 0 && waited > cfg->idle_ms)
            http_conn_close(c);
        else if (c->in.len > 0 && waited > cfg->head_ms)
            time_out(c, "head", cfg->head_ms);
        break;
    case CONN_BODY:
        if (waited > cfg->body_ms) time_out(c, "body", cfg->body_ms);
        break;
    case CONN_LINGER:
        if (c->shut && waited > cfg->linger_ms) http_conn_close(c);
        break;
    case CONN_REPLY:
    case CONN_CLOSING:
        break;
    }
}

void http_conn_drain(struct http_conn *c)
{
    c->last = true;
    if (c->state == CONN_HEAD && c->in.len == 0) linger(c);
}

/* ---- the exchange, for the application ---- */

const char *http_method(const struct http_exchange *ex)
{
    return ex->head.method;
}
const char *http_path(const struct http_exchange *ex)
{
    return ex->head.path;
}
const char *http_query(const struct http_exchange *ex)
{
    return ex->head.query;
}
const char *http_request_id(const struct http_exchange *ex)
{
    return ex->request_id;
}
const char *http_header(const struct http_exchange *ex, const char *name)
{
    return http_head_find(&ex->head, name);
}
bool http_has_body(const struct http_exchange *ex)
{
    return ex->head.has_length || ex->head.chunked;
}

const char *http_body(const struct http_exchange *ex, size_t *n)
{
    *n = ex->body.len;
    return ex->body.data == NULL ? "" : ex->body.data;
}

void http_watch(struct http_exchange *ex, void *ctx, void (*on_gone)(void *ctx),
                void (*on_drained)(void *ctx))
{
    ex->ctx = ctx;
    ex->on_gone = on_gone;
    ex->on_drained = on_drained;
}

size_t http_unsent(const struct http_exchange *ex)
{
    return unsent((const struct http_conn *)((const char *)ex - offsetof(struct http_conn, ex)));
}

void http_reply(struct http_exchange *ex, int status, const char *content_type, const char *extra,
                const void *body, size_t n)
{
    struct http_conn *c = conn_of(ex);
    if (c->server->draining) c->last = true;
    send_whole(c, status, content_type, extra, body, n);
    finish(c);
}

void http_reply_fault(struct http_exchange *ex, const struct fault *f, const char *extra)
{
    struct buf b = {0}, headers = {0};
    error_body_put(&b, f);
    buf_puts(&headers, error_headers(f->status));
    if (extra != NULL) buf_puts(&headers, extra);
    if (b.failed || headers.failed)
        http_abort(ex);
    else
        http_reply(ex, f->status, "application/json", headers.data, b.data, b.len);
    buf_free(&b);
    buf_free(&headers);
}

void http_stream_begin(struct http_exchange *ex, int status, const char *content_type,
                       const char *extra)
{
    struct http_conn *c = conn_of(ex);
    ex->streaming = true;
    ex->chunked_out = ex->head.minor >= 1;
    if (!ex->chunked_out || c->server->draining) c->last = true;
    struct buf head = {0};
    put_head(c, &head, status, content_type, extra);
    buf_puts(&head, ex->chunked_out ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n");
    if (head.failed) {
        http_conn_close(c);
    } else {
        uv_buf_t p = part(head.data, head.len);
        send_parts(c, &p, 1);
    }
    buf_free(&head);
}

void http_stream_write(struct http_exchange *ex, const void *bytes, size_t n)
{
    struct http_conn *c = conn_of(ex);
    if (n == 0 || ex->head_only) return;
    char size[20];
    int size_len = snprintf(size, sizeof size, "%zx\r\n", n);
    uv_buf_t parts[3] = {part(size, (size_t)size_len), part(bytes, n), part("\r\n", 2)};
    if (ex->chunked_out)
        send_parts(c, parts, 3);
    else
        send_parts(c, parts + 1, 1);
    if (unsent(c) > LIMIT_HTTP_UNSENT_MARK) ex->was_full = true;
}

void http_stream_end(struct http_exchange *ex)
{
    struct http_conn *c = conn_of(ex);
    uv_buf_t end = part("0\r\n\r\n", 5);
    if (ex->chunked_out && !ex->head_only) send_parts(c, &end, 1);
    finish(c);
}

void http_abort(struct http_exchange *ex)
{
    struct http_conn *c = conn_of(ex);
    ex->active = false;
    http_conn_close(c);
}
