/* bench.h - the subcommands of `moesaic bench`, one file each, and what they share. A subcommand returns the process' exit
 * code. */
#ifndef MOESAIC_CLI_BENCH_H
#define MOESAIC_CLI_BENCH_H

int bench_wire(int argc, char **argv);
int bench_attention(int argc, char **argv);
int bench_kernels(int argc, char **argv);
int bench_model(int argc, char **argv);

/* Sorts v[0..n - 1], n > 0. */
double bench_median(double *v, unsigned n);

#endif
