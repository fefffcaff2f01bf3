#include "common/sys/mailbox.h"

#include <assert.h>

void mailbox_init(struct mailbox *b)
{
    *b = (struct mailbox){0};
    pthread_mutex_init(&b->lock, NULL);
    b->last = &b->first;
}

void mailbox_deinit(struct mailbox *b)
{
    assert(b->first == NULL);
    pthread_mutex_destroy(&b->lock);
}

bool mailbox_post(struct mailbox *b, struct mail *m)
{
    m->next = NULL;
    pthread_mutex_lock(&b->lock);
    bool was_empty = b->first == NULL;
    *b->last = m;
    b->last = &m->next;
    pthread_mutex_unlock(&b->lock);
    return was_empty;
}

struct mail *mailbox_take_all(struct mailbox *b)
{
    pthread_mutex_lock(&b->lock);
    struct mail *m = b->first;
    b->first = NULL;
    b->last = &b->first;
    pthread_mutex_unlock(&b->lock);
    return m;
}
