/* options.h - every option of a program can also stand in the environment: --kv-bytes is MOESAIC_KV_BYTES.
 * A flag wins over the environment, the environment over the default. */
#ifndef MOESAIC_BASE_OPTIONS_H
#define MOESAIC_BASE_OPTIONS_H

#include <argp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

/* argv with one "--name=value" put after argv[0] for each option of `argp` that the environment sets, so that later
 * flags win. A flag without an argument counts as given when its variable is "1". *argc_out and the result belong to
 * the process for its life. Wrong usage found by argp then ends the program with EXIT_USAGE. NULL: no memory. */
char **options_with_environment(const struct argp *argp, int argc, char **argv, int *argc_out);

/* Exit codes of all programs. */
enum {
    EXIT_USAGE = 2,
    EXIT_CONFIG = 3,
    EXIT_MODEL = 4,
    EXIT_PORT = 5,
    EXIT_PEER = 6,
    EXIT_BUG = 70
};
int options_exit_code(enum err_code code); /* for a failure to start */

/* An unsigned number in [lo, hi] for option `name`; ends the program through argp_error otherwise. */
uint64_t options_number(struct argp_state *state, const char *name, const char *text, uint64_t lo,
                        uint64_t hi);

/* Split "host:port" ("[::1]:80", ":80", "host"); host and port default when absent. INVALID names the text. */
enum err_code options_address(const char *text, const char *default_host, unsigned default_port,
                              char host[256], unsigned *port, struct err *why);
/* "host:port", or "[host]:port" when the host is IPv6; returns out. 300 bytes suffice. */
char *options_address_text(const char *host, unsigned port, char *out, size_t cap);
/* Is that host this machine only (127.0.0.0/8, ::1, localhost)? */
bool options_is_loopback(const char *host);

#endif
