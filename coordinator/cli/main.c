/* moesaic: the command people type. Each subcommand is one file, cmd_<name>.c; coordinator and node are programs of
 * their own, so that what loads gRPC is never what forks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/options.h"
#include "common/modelfile/model_file.h"
#include "common/rpc/frame.h"
#include "coordinator/cli/child.h"
#include "coordinator/cli/commands.h"

static int cmd_version(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    printf("moesaic %s (wire protocol %u, numerics %u)\n", MOESAIC_VERSION, FRAME_PROTOCOL,
           NUMERICS_VERSION);
    return 0;
}

static int run_program(const char *name, char **argv)
{
    char path[4096];
    struct err why;
    if (child_program(name, path, sizeof path, &why) != ERR_OK) {
        fprintf(stderr, "moesaic: %s\n", why.text);
        return EXIT_CONFIG;
    }
    execv(path, argv);
    perror(path);
    return EXIT_CONFIG;
}

static int cmd_coordinator(int argc, char **argv)
{
    (void)argc;
    return run_program("moesaic-coordinator", argv);
}

static int cmd_node(int argc, char **argv)
{
    (void)argc;
    return run_program("moesaic-node", argv);
}

static const struct {
    const char *group, *name, *args, *what;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"Serve", "up", "MODEL", "a whole cluster on this machine", cmd_up},
    {"Serve", "coordinator", "MODEL", "the coordinator of a cluster across machines",
     cmd_coordinator},
    {"Serve", "node", "MODEL", "an expert node", cmd_node},
    {"Use", "chat", "[TEXT]", "ask a running server, once or in a loop", cmd_chat},
    {"Use", "status", "", "state of a running cluster; exit code 0 ok, 1 degraded, 2 down",
     cmd_status},
    {"Use", "demo", "MODEL", "start a cluster, have a story told, show who computed what",
     cmd_demo},
    {"Models", "inspect", "MODEL", "what a model holds and what it takes", cmd_inspect},
    {"Models", "tokenize", "DIR", "texts to token ids and back, JSON lines", cmd_tokenize},
    {"Models", "template", "DIR", "render chats by a model's template, JSON lines", cmd_template},
    {"Measure", "bench", "wire", "round trips of the expert transport beside plain TCP", cmd_bench},
    {"About", "version", "", "version of this program and its protocols", cmd_version},
};

static void help(FILE *out)
{
    const char *group = "";
    fprintf(out,
            "Usage: moesaic COMMAND [OPTION...]\n"
            "Serves Mixture-of-Experts language models on several ordinary machines at once.\n");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        if (strcmp(group, commands[i].group) != 0) fprintf(out, "\n%s\n", commands[i].group);
        group = commands[i].group;
        fprintf(out, "  %-12s %-8s %s\n", commands[i].name, commands[i].args, commands[i].what);
    }
    fprintf(
        out,
        "\n`moesaic COMMAND --help` lists a command's options. First try: moesaic demo deploy/demo\n");
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0 ||
        strcmp(argv[1], "-h") == 0) {
        help(argc < 2 ? stderr : stdout);
        return argc < 2 ? EXIT_USAGE : 0;
    }
    const char *name = strcmp(argv[1], "--version") == 0 ? "version" : argv[1];
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        if (strcmp(name, commands[i].name) != 0) continue;
        char title[64];
        snprintf(title, sizeof title, "moesaic %s", name);
        argv[1] = title; /* what usage texts print */
        return commands[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "moesaic: no command '%s'; `moesaic --help` lists them\n", argv[1]);
    return EXIT_USAGE;
}
