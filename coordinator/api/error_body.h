/* error_body.h - errors as OpenAI's clients read them, and the fault that a checker reports. Pure, any thread. */
#ifndef MOESAIC_API_ERROR_BODY_H
#define MOESAIC_API_ERROR_BODY_H

#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"

/* What is wrong with a request, at the level of HTTP. */
struct fault {
    int status;       /* 400.. */
    const char *code; /* static, e.g. "model_not_found"; NULL: null */
    char param[64];   /* name of the parameter at fault; "": null */
    char text[512];
    uint32_t n_prompt_tokens, n_ctx; /* of a prompt that is too long; else 0 */
};

/* Fill *f and answer `status`, so `return fault_set(...)` is the usual form. `param` and `code` may be NULL. */
int fault_set(struct fault *f, int status, const char *code, const char *param, const char *fmt,
              ...) __attribute__((format(printf, 5, 6)));
int fault_from_err(struct fault *f, const struct err *why);

/* {"error":{"message":..,"type":..,"param":..,"code":..,"status":..}}; all keys always. */
void error_body_put(struct buf *b, const struct fault *f);

/* Header lines that belong to the status (Retry-After, x-should-retry), each with its CRLF; static, may be "". */
const char *error_headers(int status);

#endif
