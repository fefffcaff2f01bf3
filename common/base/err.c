#include "common/base/err.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int grpc, http;
    bool retry;
} table[ERR_N_CODES] = {
    [ERR_OK] = {"OK", 0, 200, false},
#define X(code, meaning, grpc, http, retry) [ERR_##code] = {#code, grpc, http, retry},
#include "common/base/err.def"
#undef X
};

enum err_code err_set(struct err *why, enum err_code code, const char *fmt, ...)
{
    if (why == NULL) return code;
    why->code = code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why->text, sizeof why->text, fmt, ap);
    va_end(ap);
    return code;
}

enum err_code err_wrap(struct err *why, enum err_code code, const char *fmt, ...)
{
    if (why == NULL) return code;
    char inner[ERR_TEXT_MAX];
    memcpy(inner, why->text, sizeof inner);
    inner[sizeof inner - 1] = '\0';
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(why->text, sizeof why->text, fmt, ap);
    va_end(ap);
    why->code = code;
    if (n >= 0 && (size_t)n < sizeof why->text)
        snprintf(why->text + n, sizeof why->text - (size_t)n, ": %s", inner);
    return code;
}

enum err_code err_nomem(struct err *why, const char *what)
{
    return err_set(why, ERR_EXHAUSTED, "no memory for %s", what);
}

const char *err_name(enum err_code code)
{
    return (unsigned)code < ERR_N_CODES ? table[code].name : "?";
}

int err_grpc_status(enum err_code code)
{
    return (unsigned)code < ERR_N_CODES ? table[code].grpc : 2;
}

int err_http_status(enum err_code code)
{
    return (unsigned)code < ERR_N_CODES ? table[code].http : 500;
}

bool err_retriable(enum err_code code)
{
    return (unsigned)code < ERR_N_CODES && table[code].retry;
}
