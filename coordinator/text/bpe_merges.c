#include "coordinator/text/bpe_merges.h"

#include <string.h>

#include "common/base/buf.h"
#include "common/base/mem.h"
#include "coordinator/text/grow.h"

void bpe_merges_deinit(struct bpe_merges *m)
{
    mem_free(m->data);
    *m = (struct bpe_merges){0};
}

enum err_code bpe_merges_push(struct bpe_merges *m, struct bpe_merge merge, struct err *why)
{
    if (!grow((void **)&m->data, &m->cap, m->n + 1, sizeof *m->data))
        return err_nomem(why, "merges");
    m->data[m->n++] = merge;
    return ERR_OK;
}

enum err_code bpe_merges_push_ranked(struct bpe_merges *m, struct text_view left,
                                     struct text_view right, size_t rank, const struct vocab *vocab,
                                     struct buf *joined, struct err *why)
{
    buf_clear(joined);
    buf_append(joined, left.data, left.n);
    buf_append(joined, right.data, right.n);
    if (joined->failed) return err_nomem(why, "merges");
    struct text_view parts[3] = {left, right, {joined->data, joined->len}};
    int32_t ids[3];
    for (int i = 0; i < 3; i++) {
        ids[i] = vocab_find_model(vocab, parts[i].data, parts[i].n);
        if (ids[i] < 0)
            return err_set(why, ERR_CORRUPT, "merge %zu: '%.*s' is not in the vocabulary", rank,
                           parts[i].n > 60 ? 60 : (int)parts[i].n, parts[i].data);
    }
    return bpe_merges_push(m, (struct bpe_merge){ids[0], ids[1], ids[2], (uint32_t)rank}, why);
}

static bool json_halves(const json_t *m, struct text_view *left, struct text_view *right)
{
    if (json_is_string(m)) {
        const char *s = json_string_value(m);
        size_t n = json_string_length(m);
        const char *space = memchr(s, ' ', n);
        if (space == NULL || memchr(space + 1, ' ', n - (size_t)(space + 1 - s)) != NULL)
            return false;
        *left = (struct text_view){s, (size_t)(space - s)};
        *right = (struct text_view){space + 1, n - left->n - 1};
    } else {
        const json_t *x = json_array_get(m, 0), *y = json_array_get(m, 1);
        if (json_array_size(m) != 2 || !json_is_string(x) || !json_is_string(y)) return false;
        *left = (struct text_view){json_string_value(x), json_string_length(x)};
        *right = (struct text_view){json_string_value(y), json_string_length(y)};
    }
    return left->n > 0 && right->n > 0;
}

enum err_code bpe_merges_from_json(const json_t *list, const struct vocab *vocab,
                                   struct bpe_merges *out, struct err *why)
{
    struct text_view left, right;
    struct buf joined = {0};
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < json_array_size(list) && rc == ERR_OK; i++)
        rc = json_halves(json_array_get(list, i), &left, &right)
                 ? bpe_merges_push_ranked(out, left, right, i, vocab, &joined, why)
                 : err_set(why, ERR_CORRUPT, "merge %zu is not two tokens", i);
    buf_free(&joined);
    return rc;
}
