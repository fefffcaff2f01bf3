#include "common/base/options.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/base/mem.h"

static void variable_name(const char *option, char *out, size_t cap)
{
    size_t n = (size_t)snprintf(out, cap, "MOESAIC_");
    for (const char *c = option; *c && n + 1 < cap; c++)
        out[n++] = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    out[n] = '\0';
}

char **options_with_environment(const struct argp *argp, int argc, char **argv, int *argc_out)
{
    argp_err_exit_status = EXIT_USAGE;
    size_t n_options = 0;
    while (argp->options[n_options].name != NULL || argp->options[n_options].doc != NULL)
        n_options++;
    char **out = mem_zalloc_array((size_t)argc + n_options + 2, sizeof *out);
    if (out == NULL) return NULL;
    int n = 0;
    out[n++] = argv[0];
    for (size_t i = 0; i < n_options; i++) {
        const struct argp_option *o = &argp->options[i];
        char name[128];
        if (o->name == NULL) continue;
        variable_name(o->name, name, sizeof name);
        const char *value = getenv(name);
        if (value == NULL || value[0] == '\0' || (o->arg == NULL && strcmp(value, "1") != 0))
            continue;
        size_t cap = strlen(o->name) + strlen(value) + 4;
        out[n] = mem_alloc(cap);
        if (out[n] == NULL) return NULL;
        snprintf(out[n++], cap, o->arg != NULL ? "--%s=%s" : "--%s", o->name, value);
    }
    for (int i = 1; i < argc; i++)
        out[n++] = argv[i];
    *argc_out = n;
    /* Parsed options point into it until the process ends, so it stays reachable, and what was made before it too. */
    static char **volatile kept;
    out[(size_t)argc + n_options + 1] = (char *)kept;
    kept = out;
    return out;
}

int options_exit_code(enum err_code code)
{
    switch (code) {
    case ERR_OK:
        return 0;
    case ERR_INVALID:
        return EXIT_USAGE;
    case ERR_NOT_FOUND:
    case ERR_CORRUPT:
    case ERR_UNSUPPORTED:
        return EXIT_MODEL;
    case ERR_UNAVAILABLE:
        return EXIT_PORT;
    case ERR_MISMATCH:
        return EXIT_PEER;
    case ERR_INTERNAL:
        return EXIT_BUG;
    default:
        return 1;
    }
}

uint64_t options_number(struct argp_state *state, const char *name, const char *text, uint64_t lo,
                        uint64_t hi)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0 || v < lo || v > hi)
        argp_error(state, "--%s=%s: a whole number from %llu to %llu is wanted", name, text,
                   (unsigned long long)lo, (unsigned long long)hi);
    return v;
}

enum err_code options_address(const char *text, const char *default_host, unsigned default_port,
                              char host[256], unsigned *port, struct err *why)
{
    const char *at = text, *port_text = NULL;
    size_t host_len;
    if (text[0] == '[') { /* [v6]:port */
        const char *end = strchr(text, ']');
        if (end == NULL || end == text + 1 || (end[1] != '\0' && end[1] != ':'))
            return err_set(why, ERR_INVALID, "address %.300s: want [IPv6]:PORT", text);
        at = text + 1;
        host_len = (size_t)(end - at);
        port_text = end[1] == ':' ? end + 2 : NULL;
    } else {
        const char *colon = strchr(text, ':');
        if (colon != NULL && strchr(colon + 1, ':') != NULL)
            return err_set(
                why, ERR_INVALID,
                "address %.300s: which colon is the port's? Want HOST:PORT or [IPv6]:PORT", text);
        host_len = colon != NULL ? (size_t)(colon - text) : strlen(text);
        port_text = colon != NULL ? colon + 1 : NULL;
    }
    if (host_len >= 256)
        return err_set(why, ERR_INVALID, "address %.40s...: host name longer than 255", text);
    unsigned long v = default_port;
    if (port_text != NULL) {
        char *end;
        errno = 0;
        v = strtoul(port_text, &end, 10);
        if (!isdigit((unsigned char)port_text[0]) || *end != '\0' || errno != 0 || v > 65535)
            return err_set(why, ERR_INVALID,
                           "address %.300s: port '%.40s' is not a number from 0 to 65535", text,
                           port_text);
    }
    if (host_len == 0)
        snprintf(host, 256, "%s", default_host);
    else
        snprintf(host, 256, "%.*s", (int)host_len, at);
    *port = (unsigned)v;
    return ERR_OK;
}

char *options_address_text(const char *host, unsigned port, char *out, size_t cap)
{
    snprintf(out, cap, strchr(host, ':') != NULL ? "[%s]:%u" : "%s:%u", host, port);
    return out;
}

bool options_is_loopback(const char *host)
{
    struct in_addr four;
    struct in6_addr six;
    if (strcasecmp(host, "localhost") == 0) return true;
    if (inet_pton(AF_INET, host, &four) == 1) return ntohl(four.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, host, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}
