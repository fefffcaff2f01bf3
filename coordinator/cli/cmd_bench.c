/* moesaic bench: measurements of this machine. Absolute times drift by 10-15 % and more over minutes, so each subcommand
 * runs what it compares in turns. */
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/options.h"
#include "coordinator/cli/bench.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/wire_echo.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about;
} parts[] = {
    {"attention", bench_attention, "attention by the rows that go together"},
    {"kernels", bench_kernels, "the products beside what this CPU gives at most"},
    {"model", bench_model, "decode and prefill of a model: one process beside a cluster"},
    {"wire", bench_wire, "round trips of the gRPC stream beside raw TCP"},
};

static int by_double(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

double bench_median(double *v, unsigned n)
{
    qsort(v, n, sizeof *v, by_double);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

int cmd_bench(int argc, char **argv)
{
    argp_err_exit_status = EXIT_USAGE;
    for (size_t i = 0; argc >= 2 && i < ARRAY_LEN(parts); i++) {
        if (strcmp(argv[1], parts[i].name) != 0) continue;
        char name[64];
        snprintf(name, sizeof name, "moesaic bench %s", parts[i].name);
        argv[1] = name;
        return parts[i].run(argc - 1, argv + 1);
    }
    if (argc >= 3 && strcmp(argv[1], "wire-echo") == 0) /* hidden: our own child */
        return wire_echo_main(strcmp(argv[2], "spin") == 0, argc >= 4);
    bool help = argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    FILE *to = help ? stdout : stderr;
    fprintf(to, "Usage: moesaic bench PART [OPTION...]\n\n");
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        fprintf(to, "  %-9s %s\n", parts[i].name, parts[i].about);
    fprintf(to, "\n`moesaic bench PART --help` lists the options of one.\n");
    return help ? 0 : EXIT_USAGE;
}
