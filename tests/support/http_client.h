/* http_client.h - a client that can misbehave: a blocking loopback socket and what was read from it. */
#ifndef MOESAIC_TESTS_HTTP_CLIENT_H
#define MOESAIC_TESTS_HTTP_CLIENT_H

#include <stdbool.h>

#include "common/base/buf.h"

int client_connect(int port);                   /* reads time out after 5 s */
int client_connect_small(int port, int window); /* with a receive buffer of so many bytes */
void client_send(int fd, const char *text);
void client_send_bytes(int fd, const void *bytes, size_t n);
/* Read until `stop` has been seen in what was read, or the end; false on time-out. NULL: until the end. */
bool client_read(int fd, struct buf *in, const char *stop);
/* Connect, send, read to the end (so the request should say Connection: close); 0-terminated, free with mem_free. */
char *client_talk(int port, const char *request);
/* "HTTP/1.1 200" -> 200; 0 if it is none. */
int client_status(const char *reply);
/* After the head; "" if there is none. */
const char *client_body(const char *reply);
/* POST of JSON with Connection: close: the whole reply, chunks taken apart. mem_free. */
char *client_post(int port, const char *path, const char *json);

#endif
