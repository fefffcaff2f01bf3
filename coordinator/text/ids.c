#include "coordinator/text/ids.h"

#include <string.h>

#include "coordinator/text/grow.h"

bool ids_push(struct ids *ids, int32_t id)
{
    return ids_append(ids, &id, 1);
}

bool ids_append(struct ids *ids, const int32_t *more, size_t n)
{
    if (n == 0) return true;
    if (!grow((void **)&ids->data, &ids->cap, ids->len + n, sizeof *ids->data)) return false;
    memcpy(ids->data + ids->len, more, n * sizeof *more);
    ids->len += n;
    return true;
}

void ids_free(struct ids *ids)
{
    mem_free(ids->data);
    *ids = (struct ids){0};
}
