/* http_conn.h - what http.c (server) and http_conn.c (connection) share. Loop thread only. */
#ifndef MOESAIC_API_HTTP_CONN_H
#define MOESAIC_API_HTTP_CONN_H

#include "common/base/buf.h"
#include "coordinator/api/http.h"
#include "coordinator/api/http_chunks.h"
#include "coordinator/api/http_head.h"

#define HTTP_LISTENERS_MAX 16
#define HTTP_READ_BYTES    (64u << 10)

enum http_conn_state {
    CONN_HEAD, /* idle, or collecting a head */
    CONN_BODY,
    CONN_REPLY,  /* the exchange is the application's */
    CONN_LINGER, /* replied for the last time: input is dropped until the client closes */
    CONN_CLOSING,
};

struct http_exchange {
    char *head_text; /* owns what head points into */
    struct http_head head;
    struct buf body;
    struct http_chunks chunks;
    char request_id[72];
    bool active; /* handed to the application, not ended */
    bool streaming, chunked_out, head_only;
    bool was_full; /* over the mark since on_drained */
    void *ctx;
    void (*on_gone)(void *ctx), (*on_drained)(void *ctx);
};

struct http_conn {
    uv_tcp_t tcp;
    uv_shutdown_t shutdown;
    struct http_server *server;
    struct http_conn *prev, *next;
    struct http_exchange ex;
    struct buf in; /* not yet taken input */
    struct http_scan scan;
    enum http_conn_state state;
    bool processing; /* conn_process is on the stack */
    bool last;       /* close after the present reply */
    bool eof, shut;
    bool loopback;
    char peer[46];
    uint64_t since_ms;             /* start of the present state, head or idle time */
    uint64_t window_ms;            /* start of the present stall window */
    uint64_t written, window_sent; /* bytes handed to libuv; sent at window_ms */
    size_t body_counted;           /* our part of server->bodies_bytes */
};

struct http_server {
    uv_loop_t *loop;
    struct http_cfg cfg;
    uv_tcp_t listeners[HTTP_LISTENERS_MAX];
    int n_listeners, listeners_open;
    bool unaccepted[HTTP_LISTENERS_MAX]; /* a connection waits there for memory */
    uv_timer_t timer;
    bool timer_open, draining, closing;
    bool only_loopback; /* all addresses are: then Host is checked */
    char *addresses;    /* as bound, then cfg.hosts: for the Host check */
    int port;
    struct http_conn *conns;
    uint32_t n_conns;
    size_t bodies_bytes;
    uint64_t accept_warned_ms, next_id;
    void (*drained)(void *ctx), (*closed)(void *ctx);
    void *drained_ctx, *closed_ctx;
    char read_buffer[HTTP_READ_BYTES]; /* each read is taken before the next */
};

void http_conn_accepted(struct http_conn *c, bool refuse); /* tcp is accepted and listed */
void http_conn_tick(struct http_conn *c, uint64_t now_ms);
void http_conn_close(struct http_conn *c);
void http_conn_drain(struct http_conn *c);
void http_server_forget(struct http_server *s, struct http_conn *c); /* c is closed and freed */

/* Is `host` (a Host header) one that names this machine from itself? Guards against DNS rebinding. */
bool http_host_is_local(const char *host,
                        const char *names); /* names: "NAME[:PORT],.."; "*" allows any */

#endif
