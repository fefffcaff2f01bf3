/* mailbox.h - messages from one thread to another: many may post, one takes. Intrusive, so posting cannot fail. */
#ifndef MOESAIC_SYS_MAILBOX_H
#define MOESAIC_SYS_MAILBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

struct mail {
    struct mail *next;
};

struct mailbox {
    pthread_mutex_t lock;
    struct mail *first, **last;
};

void mailbox_init(struct mailbox *b);
void mailbox_deinit(struct mailbox *b); /* must be empty */
/* Append; true if the box was empty (the taker should be woken). */
bool mailbox_post(struct mailbox *b, struct mail *m);
/* All that is there, oldest first, linked by next; NULL if empty. */
struct mail *mailbox_take_all(struct mailbox *b);

#endif
