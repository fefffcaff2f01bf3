#include "coordinator/api/error_body.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int fault_set(struct fault *f, int status, const char *code, const char *param, const char *fmt,
              ...)
{
    f->status = status;
    f->n_prompt_tokens = f->n_ctx = 0;
    f->code = code;
    snprintf(f->param, sizeof f->param, "%s", param == NULL ? "" : param);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->text, sizeof f->text, fmt, ap);
    va_end(ap);
    return status;
}

int fault_from_err(struct fault *f, const struct err *why)
{
    const char *code = NULL;
    if (why->code == ERR_CONTEXT)
        code = "context_length_exceeded";
    else if (why->code == ERR_TIMEOUT)
        code = "timeout";
    else if (why->code == ERR_EXHAUSTED)
        code = "overloaded";
    int status = err_http_status(why->code);
    /* 499 is for logs: nobody is there to read it. What reaches a reader is a server that gave up. */
    if (status == 499) status = 503;
    return fault_set(f, status, code, NULL, "%.500s", why->text);
}

static const char *type_of(const struct fault *f)
{
    if (f->code != NULL && strcmp(f->code, "context_length_exceeded") == 0)
        return "exceed_context_size_error";
    switch (f->status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
    case 405:
        return "not_found_error";
    case 408:
        return "timeout_error";
    case 413:
    case 414:
    case 431:
        return "request_too_large";
    case 429:
        return "rate_limit_error";
    case 501:
        return "not_supported_error";
    case 503:
        return "unavailable_error";
    case 504:
        return "expert_timeout";
    default:
        return f->status < 500 ? "invalid_request_error" : "server_error";
    }
}

void error_body_put(struct buf *b, const struct fault *f)
{
    buf_puts(b, "{\"error\":{\"message\":");
    buf_put_json_string(b, f->text, strlen(f->text));
    buf_printf(b, ",\"type\":\"%s\",\"param\":", type_of(f));
    if (f->param[0] == '\0')
        buf_puts(b, "null");
    else
        buf_put_json_string(b, f->param, strlen(f->param));
    buf_puts(b, ",\"code\":");
    if (f->code == NULL)
        buf_puts(b, "null");
    else
        buf_put_json_string(b, f->code, strlen(f->code));
    buf_printf(b, ",\"status\":%d", f->status);
    if (f->n_ctx > 0)
        buf_printf(b, ",\"n_prompt_tokens\":%u,\"n_ctx\":%u", f->n_prompt_tokens, f->n_ctx);
    buf_puts(b, "}}");
}

const char *error_headers(int status)
{
    switch (status) {
    case 429:
    case 503:
    case 504: /* err.def: worth retrying, as 503 */
        return "Retry-After: 1\r\n";
    case 501:
        return "x-should-retry: false\r\n"; /* the clients retry every 5xx otherwise */
    default:
        return "";
    }
}
