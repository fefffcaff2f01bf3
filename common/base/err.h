/* err.h - what went wrong: a code that says what the caller should do, a text that says what happened.
 * Plain values, any thread. One table (err.def) gives each code its gRPC status, HTTP status and
 * whether a retry is worth while, so the three never disagree. */
#ifndef MOESAIC_BASE_ERR_H
#define MOESAIC_BASE_ERR_H

#include <stdarg.h>
#include <stdbool.h>

enum err_code {
    ERR_OK = 0,
#define X(code, meaning, grpc, http, retry) ERR_##code,
#include "common/base/err.def"
#undef X
    ERR_N_CODES
};

#define ERR_TEXT_MAX 1024

struct err {
    enum err_code code;
    char text[ERR_TEXT_MAX]; /* longer texts are cut */
};

/* Set code and text; returns the code, so `return err_set(why, ...)` is the usual form. `why` may be NULL. */
enum err_code err_set(struct err *why, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Put "fmt: " before the text that is there. Returns `code` unchanged. `why` may be NULL. */
enum err_code err_wrap(struct err *why, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* "no memory for <what>" with ERR_EXHAUSTED. */
enum err_code err_nomem(struct err *why, const char *what);

const char *err_name(enum err_code code); /* "INVALID"; static */
int err_grpc_status(enum err_code code);
int err_http_status(enum err_code code);
bool err_retriable(enum err_code code);

#endif
