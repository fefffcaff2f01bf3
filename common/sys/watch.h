/* watch.h - one small thread that waits for SIGINT, SIGTERM, SIGHUP and the end of the parent, and says so.
 * A child of `moesaic up` is given one end of a socket pair: when the other end closes, however the parent died,
 * the child ends too. The same descriptor carries the child's status lines to the parent. */
#ifndef MOESAIC_SYS_WATCH_H
#define MOESAIC_SYS_WATCH_H

#include "common/base/err.h"

struct watch;

enum watch_event {
    WATCH_STOP,   /* first SIGINT, SIGTERM or SIGHUP: drain and end */
    WATCH_AGAIN,  /* another one: end now */
    WATCH_ORPHAN, /* the parent is gone: end now */
};

/* Blocks these signals in the calling thread; call it before any other thread starts, so that all inherit that.
 * `fn` runs on the watch's thread. parent_fd -1: no parent. */
enum err_code watch_open(int parent_fd, void (*fn)(void *ctx, enum watch_event ev), void *ctx,
                         struct watch **out, struct err *why);
void watch_close(struct watch *w);

/* One status line to the parent (a newline is added); nothing happens without one, and a line is lost when a
 * parent does not read for long. Any thread. */
void watch_tell_parent(int parent_fd, const char *line);

#endif
