/* ask.h - one question to a running server, its answer streamed to the terminal; shared by chat and demo. */
#ifndef MOESAIC_CLI_ASK_H
#define MOESAIC_CLI_ASK_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"

struct ask {
    const char *server;
    const json_t *messages; /* chat; NULL: `prompt` is completed */
    const char *prompt;
    int max_tokens;                          /* -1: the server's default */
    double temperature, top_p;               /* -1: the server's default */
    int64_t seed;                            /* -1: none */
    bool print;                              /* show the text as it comes */
    bool dim_reasoning;                      /* and, dimmed, the reasoning before it (a terminal) */
    const volatile int *stop;                /* nonzero: the answer is stopped; may be NULL */
    void (*on_token)(void *ctx, unsigned n); /* after the n-th piece of text; may be NULL */
    void *ctx;
};

struct ask_answer {
    struct buf text; /* buf_free; without the reasoning, which is not sent back */
    unsigned pieces; /* of text that came */
    json_int_t prompt_tokens, completion_tokens;
    double first_s, total_s;
    char finish[16];
};

/* The server's own error text is in `why`. CANCELLED when stopped (what came is in the answer). */
enum err_code ask_server(const struct ask *a, struct ask_answer *out, struct err *why);

#endif
