/* cmd_chat.c - `moesaic chat`: ask a running server, one shot or in a loop that remembers. */
#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/options.h"
#include "common/base/utf8.h"
#include "coordinator/cli/ask.h"
#include "coordinator/cli/commands.h"

enum {
    OPT_HTTP = 256,
    OPT_MAX_TOKENS,
    OPT_TEMPERATURE,
    OPT_TOP_P,
    OPT_SEED,
    OPT_SYSTEM,
    OPT_STATS
};

struct chat_options {
    const char *server, *system;
    struct buf text;
    int max_tokens;
    double temperature, top_p;
    int64_t seed;
    bool stats;
};

static const struct argp_option options[] = {
    {"http", OPT_HTTP, "HOST:PORT", 0, "The server (default 127.0.0.1:8080)", 0},
    {"system", OPT_SYSTEM, "TEXT", 0, "System message", 0},
    {"max-tokens", OPT_MAX_TOKENS, "N", 0, "Longest answer (default: what the context leaves)", 0},
    {"temperature", OPT_TEMPERATURE, "T", 0, "0: always the likeliest token (default: the model's)",
     0},
    {"top-p", OPT_TOP_P, "P", 0,
     "Sample from the likeliest tokens that make up P (default: the model's)", 0},
    {"seed", OPT_SEED, "S", 0, "The same seed gives the same answer", 0},
    {"stats", OPT_STATS, NULL, 0, "Print tokens and times after each answer", 0},
    {0},
};

static double real_in(struct argp_state *state, const char *name, const char *text, double lo,
                      double hi)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end != '\0' || !(v >= lo && v <= hi))
        argp_error(state, "--%s=%s: a number from %g to %g is wanted", name, text, lo, hi);
    return v;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct chat_options *o = state->input;
    switch (key) {
    case OPT_HTTP:
        o->server = arg;
        break;
    case OPT_SYSTEM:
        o->system = arg;
        break;
    case OPT_MAX_TOKENS:
        o->max_tokens = (int)options_number(state, "max-tokens", arg, 1, 1 << 24);
        break;
    case OPT_TEMPERATURE:
        o->temperature = real_in(state, "temperature", arg, 0, 2);
        break;
    case OPT_TOP_P:
        o->top_p = real_in(state, "top-p", arg, 1e-6, 1);
        break;
    case OPT_SEED:
        o->seed = (int64_t)options_number(state, "seed", arg, 0, INT64_MAX);
        break;
    case OPT_STATS:
        o->stats = true;
        break;
    case ARGP_KEY_ARG:
        if (o->text.len > 0) buf_putc(&o->text, ' ');
        buf_puts(&o->text, arg);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp argp = {
    options,
    parse,
    "[TEXT]",
    "Ask a running server. With TEXT one answer is printed; without, a prompt loop begins that "
    "remembers what was said.\vA model's reasoning is shown dimmed on a terminal, not at all "
    "elsewhere, and is not sent back.\nCtrl-C stops an answer; Ctrl-D or an empty Ctrl-C ends the loop.",
    NULL,
    NULL,
    NULL};

static volatile int interrupted; /* set by SIGINT: stops the answer under way */

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

/* What a terminal or an argument gives need not be UTF-8: as everywhere, each invalid part is one U+FFFD. False: no memory. */
static bool add_message(json_t *messages, const char *role, const char *text, size_t n)
{
    struct buf valid = {0};
    for (size_t i = 0; i < n;) {
        uint32_t code_point;
        i += utf8_decode(text + i, n - i, &code_point);
        buf_put_utf8(&valid, code_point);
    }
    json_t *message = valid.failed ? NULL
                                   : json_pack("{s:s,s:s%}", "role", role, "content",
                                               valid.data != NULL ? valid.data : "", valid.len);
    buf_free(&valid);
    return json_array_append_new(messages, message) == 0;
}

/* One turn: a question and its answer join the messages, or, when there is none, neither. */
static int turn(const struct chat_options *o, json_t *messages, const char *question, size_t n)
{
    const size_t before = json_array_size(messages);
    if (!add_message(messages, "user", question, n)) {
        fprintf(stderr, "moesaic chat: no memory for the question\n");
        return 1;
    }
    struct ask a = {.server = o->server,
                    .messages = messages,
                    .max_tokens = o->max_tokens,
                    .temperature = o->temperature,
                    .top_p = o->top_p,
                    .seed = o->seed,
                    .print = true,
                    .dim_reasoning = isatty(STDOUT_FILENO) != 0,
                    .stop = &interrupted};
    struct ask_answer answer;
    struct err why;
    interrupted = 0;
    enum err_code rc = ask_server(&a, &answer, &why);
    printf("\n");
    if (rc == ERR_OK || rc == ERR_CANCELLED) {
        if (!add_message(messages, "assistant", answer.text.data, answer.text.len))
            fprintf(stderr, "moesaic chat: no memory to remember the answer\n");
        if (o->stats && rc == ERR_OK) {
            double rest = answer.total_s - answer.first_s;
            printf(
                "[%lld prompt tokens, first token after %.2f s; %lld tokens, %.1f tokens/s; %s]\n",
                (long long)answer.prompt_tokens, answer.first_s,
                (long long)answer.completion_tokens,
                answer.completion_tokens > 1 && rest > 0
                    ? (double)(answer.completion_tokens - 1) / rest
                    : 0.0,
                answer.finish);
        }
        if (rc == ERR_CANCELLED) printf("[stopped]\n");
    } else {
        fprintf(stderr, "moesaic chat: %s\n", why.text);
        json_array_remove(messages, before); /* the question may be asked again */
    }
    buf_free(&answer.text);
    return rc == ERR_OK || rc == ERR_CANCELLED ? 0 : 1;
}

int cmd_chat(int argc, char **argv)
{
    struct chat_options o = {
        .server = "127.0.0.1:8080", .max_tokens = -1, .temperature = -1, .top_p = -1, .seed = -1};
    argv = options_with_environment(&argp, argc, argv, &argc);
    if (argv == NULL) return 1;
    argp_parse(&argp, argc, argv, 0, NULL, &o);
    struct sigaction act = {.sa_handler =
                                on_interrupt}; /* no SA_RESTART: it also ends a waiting read */
    sigaction(SIGINT, &act, NULL);
    json_t *messages = json_array();
    int code = 0;
    if (o.system != NULL && !add_message(messages, "system", o.system, strlen(o.system))) {
        fprintf(stderr, "moesaic chat: no memory for the system message\n");
        code = 1;
    } else if (o.text.len > 0) {
        code = turn(&o, messages, o.text.data, o.text.len);
    } else {
        char *line = NULL;
        size_t cap = 0;
        bool tty = isatty(STDIN_FILENO);
        for (;;) {
            if (tty) printf("> ");
            fflush(stdout);
            interrupted = 0;
            errno = 0;
            ssize_t n = getline(&line, &cap, stdin);
            if (n < 0) break;
            while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
                line[--n] = '\0';
            if (n == 0) continue;
            code = turn(&o, messages, line, (size_t)n);
        }
        if (tty) printf("\n");
        free(line);
    }
    json_decref(messages);
    buf_free(&o.text);
    return code;
}
