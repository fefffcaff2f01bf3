/* commands.h - the subcommands of `moesaic`, one file each. Each returns the process' exit code. */
#ifndef MOESAIC_CLI_COMMANDS_H
#define MOESAIC_CLI_COMMANDS_H

int cmd_up(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_demo(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_template(int argc, char **argv);
int cmd_bench(int argc, char **argv);

#endif
