/* ids.h - a growing list of token ids in the caller's storage; zero-initialized is empty. */
#ifndef MOESAIC_TEXT_IDS_H
#define MOESAIC_TEXT_IDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ids {
    int32_t *data; /* mem_free, or ids_free */
    size_t len, cap;
};

bool ids_push(struct ids *ids, int32_t id); /* false when memory is short */
bool ids_append(struct ids *ids, const int32_t *more, size_t n);
void ids_free(struct ids *ids);

#endif
