/* up_child.h - a whole cluster as our child: `moesaic up` in a process and a session of its own, with a ready file and a
 * log in a temporary folder. Ctrl-C in the terminal reaches us alone, who then end it in order; should we be killed, the
 * kernel tells it. One thread. */
#ifndef MOESAIC_CLI_UP_CHILD_H
#define MOESAIC_CLI_UP_CHILD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/base/err.h"

#define UP_CHILD_POLL_US 20000u

struct up_child {
    char folder[64]; /* made by open, removed by close */
    char ready_file[96], log_file[96];
    pid_t pid; /* 0: not running */
};

/* `noun`: a part of the folder's name. IO. */
enum err_code up_child_open(struct up_child *c, const char *noun, struct err *why);
/* Run `program` (a path; NULL: the running one) with argv: "moesaic", "up", ... , NULL; the ready file is to be named in
 * it by the caller. `outlives`: it goes on when we die. IO, EXHAUSTED. */
enum err_code up_child_start(struct up_child *c, const char *program, const char *const *argv,
                             bool outlives, struct err *why);
bool up_child_is_ready(const struct up_child *c);
/* Has it ended? Then *status is waitpid's. True also when it never ran. */
bool up_child_ended(struct up_child *c, int *status);
/* Wait until it is ready. False: it has ended, or *stop became nonzero. */
bool up_child_wait_ready(struct up_child *c, const volatile int *stop);
/* End it and wait. Each time that *again becomes nonzero it is told once more, and *again is 0 again. */
void up_child_stop(struct up_child *c, volatile int *again);
void up_child_print_log(const struct up_child *c); /* to standard error */
void up_child_close(
    struct up_child *c); /* removes the folder; the child is not running, or is to keep running */

#endif
