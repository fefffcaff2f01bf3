#include "coordinator/api/http.h"

#include <ctype.h>
#include <limits.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "coordinator/api/http_conn.h"

#define BACKLOG      512
#define REFUSALS_MAX 64u /* connections over the limit that still get a reply, together */
#define ADDRESS_MAX  300

static void finish_close(struct http_server *s)
{
    if (!s->closing || s->listeners_open > 0 || s->n_conns > 0 || s->timer_open) return;
    void (*closed)(void *) = s->closed;
    void *ctx = s->closed_ctx;
    mem_free(s->addresses);
    mem_free(s);
    if (closed != NULL) closed(ctx);
}

static void listener_closed(uv_handle_t *h)
{
    struct http_server *s = h->data;
    s->listeners_open--;
    finish_close(s);
}

static void timer_closed(uv_handle_t *h)
{
    struct http_server *s = h->data;
    s->timer_open = false;
    finish_close(s);
}

static void close_listeners(struct http_server *s)
{
    for (int i = 0; i < s->n_listeners; i++)
        if (!uv_is_closing((uv_handle_t *)&s->listeners[i]))
            uv_close((uv_handle_t *)&s->listeners[i], listener_closed);
}

static void tell_drained(struct http_server *s)
{
    if (!s->draining || s->n_conns > 0 || s->drained == NULL) return;
    void (*drained)(void *) = s->drained;
    s->drained = NULL;
    drained(s->drained_ctx);
}

static void on_connection(uv_stream_t *listener, int status);

static void tick(uv_timer_t *t)
{
    struct http_server *s = t->data;
    uint64_t now = uv_now(s->loop);
    for (int i = 0; i < s->n_listeners; i++)
        if (s->unaccepted[i] && !s->draining) on_connection((uv_stream_t *)&s->listeners[i], 0);
    for (struct http_conn *c = s->conns, *next; c != NULL; c = next) {
        next = c->next;
        http_conn_tick(c, now);
    }
    tell_drained(s);
}

void http_server_forget(struct http_server *s, struct http_conn *c)
{
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        s->conns = c->next;
    if (c->next != NULL) c->next->prev = c->prev;
    s->n_conns--;
    mem_free(c);
    if (s->closing)
        finish_close(s);
    else
        tell_drained(s);
}

static void name_peer(struct http_conn *c)
{
    struct sockaddr_storage a;
    int n = sizeof a;
    if (uv_tcp_getpeername(&c->tcp, (struct sockaddr *)&a, &n) != 0) return;
    if (a.ss_family == AF_INET)
        uv_ip4_name((struct sockaddr_in *)&a, c->peer, sizeof c->peer);
    else
        uv_ip6_name((struct sockaddr_in6 *)&a, c->peer, sizeof c->peer);
    c->loopback = strncmp(c->peer, "127.", 4) == 0 || strcmp(c->peer, "::1") == 0 ||
                  strncmp(c->peer, "::ffff:127.", 11) == 0;
}

static uint32_t count_from(const struct http_server *s, const char *peer)
{
    uint32_t n = 0;
    for (const struct http_conn *c = s->conns; c != NULL; c = c->next)
        n += strcmp(c->peer, peer) == 0;
    return n;
}

static void drop_unlisted(uv_handle_t *h)
{
    struct http_conn *c = h->data;
    mem_free(c);
}

/* Out of descriptors: libuv itself spends its spare one to close what it cannot take, so the loop does not spin. */
static void warn_accept(struct http_server *s, const char *reason)
{
    uint64_t now = uv_now(s->loop);
    if (s->accept_warned_ms != 0 && now - s->accept_warned_ms < 1000) return;
    s->accept_warned_ms = now;
    log_warn("http", "msg=\"a connection was not accepted: %s\"", reason);
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct http_server *s = listener->data;
    if (status < 0) {
        warn_accept(s, uv_strerror(status));
        return;
    }
    /* libuv stops listening until its connection is accepted: without memory the timer tries again. */
    bool *unaccepted = &s->unaccepted[(uv_tcp_t *)listener - s->listeners];
    struct http_conn *c = mem_zalloc(sizeof *c);
    int rc = c == NULL ? UV_ENOMEM : uv_tcp_init(s->loop, &c->tcp);
    *unaccepted = rc != 0;
    if (rc != 0) {
        mem_free(c);
        warn_accept(s, uv_strerror(rc));
        return;
    }
    c->server = s;
    c->tcp.data = c;
    rc = uv_accept(listener, (uv_stream_t *)&c->tcp);
    if (rc != 0 || s->n_conns >= s->cfg.connections + REFUSALS_MAX) {
        warn_accept(s, rc != 0 ? uv_strerror(rc) : "too many connections");
        uv_close((uv_handle_t *)&c->tcp, drop_unlisted);
        return;
    }
    name_peer(c);
    bool refuse = s->n_conns >= s->cfg.connections ||
                  (!c->loopback && count_from(s, c->peer) >= LIMIT_HTTP_CONNECTIONS_IP);
    c->next = s->conns;
    if (s->conns != NULL) s->conns->prev = c;
    s->conns = c;
    s->n_conns++;
    http_conn_accepted(c, refuse);
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return (ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24) == 127;
    return a->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

static enum err_code listen_at(struct http_server *s, const struct sockaddr *a, const char *name,
                               struct err *why)
{
    if (s->n_listeners == HTTP_LISTENERS_MAX)
        return err_set(why, ERR_INVALID, "more than %d addresses to listen on", HTTP_LISTENERS_MAX);
    uv_tcp_t *l = &s->listeners[s->n_listeners];
    int rc = uv_tcp_init(s->loop, l);
    if (rc != 0) return err_set(why, ERR_IO, "listen on %s: %s", name, uv_strerror(rc));
    l->data = s;
    s->n_listeners++;
    s->listeners_open++;
    rc = uv_tcp_bind(l, a, 0);
    if (rc == 0) rc = uv_listen((uv_stream_t *)l, BACKLOG, on_connection);
    if (rc == UV_EADDRINUSE)
        return err_set(why, ERR_UNAVAILABLE, "listen on %s: address already in use", name);
    if (rc != 0) return err_set(why, ERR_IO, "listen on %s: %s", name, uv_strerror(rc));
    if (!is_loopback(a)) s->only_loopback = false;
    struct sockaddr_storage bound;
    int n = sizeof bound;
    if (s->port == 0 && uv_tcp_getsockname(l, (struct sockaddr *)&bound, &n) == 0)
        s->port = ntohs(bound.ss_family == AF_INET ? ((struct sockaddr_in *)&bound)->sin_port
                                                   : ((struct sockaddr_in6 *)&bound)->sin6_port);
    return ERR_OK;
}

/* "HOST:PORT" or "[V6]:PORT", cut in place. */
static enum err_code split_address(char *text, char **host, char **port, struct err *why)
{
    char *colon = strrchr(text, ':');
    char *end = colon;
    *host = text;
    bool bracketed = text[0] == '[';
    if (bracketed) {
        end = strchr(text, ']');
        if (end == NULL || end + 1 != colon) colon = NULL;
        *host = text + 1;
    } else if (colon != NULL && memchr(text, ':', (size_t)(colon - text)) != NULL) {
        colon = NULL; /* a bare IPv6 address: which colon is the port's? */
    }
    if (colon == NULL || colon[1] == '\0')
        return err_set(why, ERR_INVALID, "address '%s' is not HOST:PORT or [IPv6]:PORT", text);
    *port = colon + 1;
    char *rest;
    unsigned long number =
        isdigit((unsigned char)colon[1]) ? strtoul(colon + 1, &rest, 10) : ULONG_MAX;
    if (number > 65535 || *rest != '\0')
        return err_set(why, ERR_INVALID, "address '%s': the port is not a number from 0 to 65535",
                       text);
    *end = '\0';
    if (**host == '\0')
        return err_set(why, ERR_INVALID, "an address without a host (0.0.0.0 means all)");
    return ERR_OK;
}

static enum err_code listen_at_text(struct http_server *s, const char *text, struct err *why)
{
    char cut[ADDRESS_MAX], *host = NULL, *port = NULL;
    if (strlen(text) >= sizeof cut)
        return err_set(why, ERR_INVALID, "an address of %zu characters", strlen(text));
    memcpy(cut, text, strlen(text) + 1);
    enum err_code rc = split_address(cut, &host, &port, why);
    if (rc != ERR_OK) return rc;
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE},
                    *found;
    int e = getaddrinfo(host, port, &hints, &found);
    if (e != 0) return err_set(why, ERR_INVALID, "address '%s': %s", text, gai_strerror(e));
    rc = listen_at(s, found->ai_addr, text, why);
    freeaddrinfo(found);
    return rc;
}

static uint32_t or_default(uint32_t value, uint32_t otherwise)
{
    return value == 0 ? otherwise : value;
}

enum err_code http_open(uv_loop_t *loop, const struct http_cfg *cfg, struct http_server **out,
                        struct err *why)
{
    struct http_server *s = mem_zalloc(sizeof *s);
    if (s == NULL) return err_nomem(why, "the HTTP server");
    s->loop = loop;
    s->cfg = *cfg;
    s->cfg.head_ms = or_default(cfg->head_ms, LIMIT_HTTP_HEAD_MS);
    s->cfg.body_ms = or_default(cfg->body_ms, LIMIT_HTTP_BODY_MS);
    s->cfg.idle_ms = or_default(cfg->idle_ms, LIMIT_HTTP_IDLE_MS);
    s->cfg.stalled_ms = or_default(cfg->stalled_ms, LIMIT_HTTP_STALLED_MS);
    s->cfg.linger_ms = or_default(cfg->linger_ms, 1500);
    s->cfg.tick_ms = or_default(cfg->tick_ms, 250);
    s->cfg.connections = or_default(cfg->connections, LIMIT_HTTP_CONNECTIONS);
    if (cfg->bodies_bytes == 0) s->cfg.bodies_bytes = LIMIT_HTTP_BODIES_BYTES;
    s->only_loopback = true;
    s->next_id = clock_now_ns();
    struct buf names = {0};
    buf_puts(&names, cfg->addresses);
    if (cfg->hosts != NULL) buf_printf(&names, ",%s", cfg->hosts);
    s->addresses = buf_take(&names, NULL);
    char *list = mem_strdup(cfg->addresses);
    enum err_code rc = ERR_OK;
    if (s->addresses == NULL || list == NULL) {
        rc = err_nomem(why, "the HTTP server");
        goto out;
    }
    char *save = NULL, *one = strtok_r(list, ", ", &save);
    if (one == NULL) rc = err_set(why, ERR_INVALID, "no address to listen on");
    for (; one != NULL && rc == ERR_OK; one = strtok_r(NULL, ", ", &save))
        rc = listen_at_text(s, one, why);
    if (rc == ERR_OK && uv_timer_init(loop, &s->timer) == 0) {
        s->timer.data = s;
        s->timer_open = true;
        uv_timer_start(&s->timer, tick, s->cfg.tick_ms, s->cfg.tick_ms);
    }
out:
    mem_free(list);
    if (rc != ERR_OK) {
        http_close(s, NULL, NULL);
        return rc;
    }
    *out = s;
    return ERR_OK;
}

int http_port(const struct http_server *s)
{
    return s->port;
}

uint32_t http_connections(const struct http_server *s)
{
    return s->n_conns;
}

void http_drain(struct http_server *s, void (*done)(void *ctx), void *ctx)
{
    s->draining = true;
    s->drained = done;
    s->drained_ctx = ctx;
    close_listeners(s);
    for (struct http_conn *c = s->conns, *next; c != NULL; c = next) {
        next = c->next;
        http_conn_drain(c);
    }
    /* With no connection left the next tick tells, so that `done` never runs inside this call. */
}

void http_close(struct http_server *s, void (*done)(void *ctx), void *ctx)
{
    if (s == NULL) return;
    s->closing = true;
    s->drained = NULL;
    s->closed = done;
    s->closed_ctx = ctx;
    close_listeners(s);
    if (s->timer_open) uv_close((uv_handle_t *)&s->timer, timer_closed);
    for (struct http_conn *c = s->conns; c != NULL; c = c->next)
        http_conn_close(c);
    finish_close(s); /* nothing was ever opened: freed at once */
}

static bool same_host(const char *a, size_t n, const char *b)
{
    return strlen(b) == n && strncasecmp(a, b, n) == 0;
}

bool http_host_is_local(const char *host, const char *names)
{
    size_t n;
    if (host[0] == '[') {
        const char *end = strchr(host, ']');
        n = end == NULL ? strlen(host) : (size_t)(end - host) + 1;
    } else {
        n = strcspn(host, ":");
    }
    if (host[n] == ':' && strspn(host + n + 1, "0123456789") != strlen(host + n + 1)) return false;
    if (host[n] != ':' && host[n] != '\0') return false;
    if (same_host(host, n, "localhost") || same_host(host, n, "[::1]")) return true;
    unsigned a, b, c, d;
    char rest, text[20];
    if (n < sizeof text) {
        memcpy(text, host, n);
        text[n] = '\0';
        if (sscanf(text, "%3u.%3u.%3u.%3u%c", &a, &b, &c, &d, &rest) == 4 && a == 127) return true;
    }
    /* A name the operator bound by, or allowed. */
    for (const char *p = names; *p != '\0';) {
        size_t len = strcspn(p, ", ");
        const char *colon = p[0] == '[' ? NULL : memrchr(p, ':', len);
        size_t name = colon == NULL ? len : (size_t)(colon - p);
        if (len == 1 && p[0] == '*') return true;
        if (name > 0 && name == n && strncasecmp(p, host, n) == 0) return true;
        p += len;
        p += strspn(p, ", ");
    }
    return false;
}
