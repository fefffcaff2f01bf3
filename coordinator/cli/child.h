/* child.h - a process of `moesaic up`: started from the programs beside this one, tied to us by a socket pair.
 * The child ends when its end of the pair closes, however we died; it sends us status lines over it. */
#ifndef MOESAIC_CLI_CHILD_H
#define MOESAIC_CLI_CHILD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/base/buf.h"
#include "common/base/err.h"

struct child {
    char name[32]; /* "coordinator", "node-0": in messages */
    pid_t pid;     /* 0: not running */
    int fd;        /* our end; -1 */
    struct buf lines;
};

/* argv[0] is a program's name, looked for beside the running program; argv ends with NULL. "--parent-fd=N" is
 * appended by us: keep two free places behind the NULL. */
enum err_code child_start(struct child *c, char **argv, int argc, struct err *why);
/* Next complete status line (0-terminated, mem_free), NULL if there is none yet. */
char *child_next_line(struct child *c);
/* Read what is there; false at the end of the stream. */
bool child_read(struct child *c);
void child_signal(struct child *c, int signal);
/* Forget a child that has been waited for. */
void child_gone(struct child *c);

/* Path of a program beside the running one, in the caller's buffer. */
enum err_code child_program(const char *name, char *out, size_t cap, struct err *why);

#endif
