/* text_view.h - bytes that somebody else owns; they may hold NUL and are not 0-terminated. */
#ifndef MOESAIC_TEXT_TEXT_VIEW_H
#define MOESAIC_TEXT_TEXT_VIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct text_view {
    const char *data; /* NULL: there is none */
    size_t n;
};

static inline bool text_view_is(struct text_view v, const char *text)
{
    return v.data != NULL && v.n == strlen(text) && memcmp(v.data, text, v.n) == 0;
}

#endif
