/* bench.h - the subcommands of `moesaic bench`, one file each. Each returns the process' exit code. */
#ifndef MOESAIC_CLI_BENCH_H
#define MOESAIC_CLI_BENCH_H

int bench_kernels(int argc, char **argv);

#endif
