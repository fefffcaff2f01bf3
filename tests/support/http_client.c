#include "tests/support/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "common/base/mem.h"

int client_connect_small(int port, int window)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (window > 0) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &window, sizeof window);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

int client_connect(int port)
{
    return client_connect_small(port, 0);
}

void client_send_bytes(int fd, const void *bytes, size_t n)
{
    const char *p = bytes;
    while (n > 0) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
        if (sent <= 0) return; /* the server may refuse and close while we still send */
        p += sent;
        n -= (size_t)sent;
    }
}

void client_send(int fd, const char *text)
{
    client_send_bytes(fd, text, strlen(text));
}

bool client_read(int fd, struct buf *in, const char *stop)
{
    for (;;) {
        if (stop != NULL && in->data != NULL && strstr(in->data, stop) != NULL) return true;
        char piece[4096];
        ssize_t n = recv(fd, piece, sizeof piece, 0);
        if (n < 0) return false;
        if (n == 0) return stop == NULL;
        buf_append(in, piece, (size_t)n);
    }
}

char *client_talk(int port, const char *request)
{
    struct buf in = {0};
    int fd = client_connect(port);
    client_send(fd, request);
    client_read(fd, &in, NULL);
    close(fd);
    return buf_take(&in, NULL);
}

int client_status(const char *reply)
{
    return strncmp(reply, "HTTP/1.", 7) == 0 ? atoi(reply + 9) : 0;
}

const char *client_body(const char *reply)
{
    const char *end = strstr(reply, "\r\n\r\n");
    return end == NULL ? "" : end + 4;
}

static char *dechunk(char *reply)
{
    char *body = strstr(reply, "\r\n\r\n");
    if (body == NULL || strstr(reply, "Transfer-Encoding: chunked") == NULL) return reply;
    struct buf out = {0};
    char *p = body + 4;
    buf_append(&out, reply, (size_t)(p - reply));
    for (;;) {
        char *end;
        unsigned long n = strtoul(p, &end, 16);
        if (end == p || n == 0 || strlen(end) < n + 2) break;
        buf_append(&out, end + 2, n);
        p = end + 2 + n + 2;
    }
    mem_free(reply);
    return buf_take(&out, NULL);
}

char *client_post(int port, const char *path, const char *json)
{
    struct buf request = {0};
    buf_printf(
        &request,
        "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
        "Connection: close\r\n\r\n%s",
        path, strlen(json), json);
    char *reply = client_talk(port, request.data);
    buf_free(&request);
    return dechunk(reply);
}
