#include "coordinator/text/bpe_merges.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/grow.h"

void bpe_merges_deinit(struct bpe_merges *m)
{
    mem_free(m->data);
    *m = (struct bpe_merges){0};
}

static enum err_code push(struct bpe_merges *m, struct bpe_merge merge, struct err *why)
{
    if (!grow((void **)&m->data, &m->cap, m->n + 1, sizeof *m->data))
        return err_nomem(why, "merges");
    m->data[m->n++] = merge;
    return ERR_OK;
}

/* ---- Ranked ------------------------------------------------------------------------------------- */

/* The two tokens of a merge, and a buffer for their concatenation. */
struct halves {
    struct text_view left, right;
    struct buf joined;
};

static enum err_code push_ranked(struct halves *h, size_t rank, const struct vocab *vocab,
                                 struct bpe_merges *out, struct err *why)
{
    buf_clear(&h->joined);
    buf_append(&h->joined, h->left.data, h->left.n);
    buf_append(&h->joined, h->right.data, h->right.n);
    if (h->joined.failed) return err_nomem(why, "merges");
    struct text_view parts[3] = {h->left, h->right, {h->joined.data, h->joined.len}};
    int32_t ids[3];
    for (int i = 0; i < 3; i++) {
        ids[i] = vocab_find_model(vocab, parts[i].data, parts[i].n);
        if (ids[i] < 0)
            return err_set(why, ERR_CORRUPT, "merge %zu: '%.*s' is not in the vocabulary", rank,
                           parts[i].n > 60 ? 60 : (int)parts[i].n, parts[i].data);
    }
    return push(out, (struct bpe_merge){ids[0], ids[1], ids[2], (uint32_t)rank}, why);
}

static bool json_halves(const json_t *m, struct halves *h)
{
    if (json_is_string(m)) {
        const char *s = json_string_value(m);
        size_t n = json_string_length(m);
        const char *space = memchr(s, ' ', n);
        if (space == NULL || memchr(space + 1, ' ', n - (size_t)(space + 1 - s)) != NULL)
            return false;
        h->left = (struct text_view){s, (size_t)(space - s)};
        h->right = (struct text_view){space + 1, n - h->left.n - 1};
    } else {
        const json_t *x = json_array_get(m, 0), *y = json_array_get(m, 1);
        if (json_array_size(m) != 2 || !json_is_string(x) || !json_is_string(y)) return false;
        h->left = (struct text_view){json_string_value(x), json_string_length(x)};
        h->right = (struct text_view){json_string_value(y), json_string_length(y)};
    }
    return h->left.n > 0 && h->right.n > 0;
}

enum err_code bpe_merges_from_json(const json_t *list, const struct vocab *vocab,
                                   struct bpe_merges *out, struct err *why)
{
    struct halves h = {0};
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < json_array_size(list) && rc == ERR_OK; i++)
        rc = json_halves(json_array_get(list, i), &h)
                 ? push_ranked(&h, i, vocab, out, why)
                 : err_set(why, ERR_CORRUPT, "merge %zu is not two tokens", i);
    buf_free(&h.joined);
    return rc;
}

static bool text_halves(struct text_view merge, struct halves *h)
{
    const char *space = merge.n < 3 ? NULL : memchr(merge.data + 1, ' ', merge.n - 2);
    if (space == NULL) return false;
    h->left = (struct text_view){merge.data, (size_t)(space - merge.data)};
    h->right = (struct text_view){space + 1, merge.n - h->left.n - 1};
    return true;
}

enum err_code bpe_merges_from_texts(const struct text_view *texts, size_t n,
                                    const struct vocab *vocab, struct bpe_merges *out,
                                    struct err *why)
{
    struct halves h = {0};
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < n && rc == ERR_OK; i++)
        rc = text_halves(texts[i], &h)
                 ? push_ranked(&h, i, vocab, out, why)
                 : err_set(why, ERR_CORRUPT, "merge %zu is not two tokens", i);
    buf_free(&h.joined);
    return rc;
}

/* ---- Scored ------------------------------------------------------------------------------------- */

struct scored {
    float score;
    uint32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Every way to make a token out of two. */
static enum err_code push_splits(uint32_t id, uint32_t rank, const struct vocab *vocab,
                                 struct bpe_merges *out, struct err *why)
{
    size_t n = 0;
    const char *text = vocab_text(vocab, (int32_t)id, &n);
    if (n > LIMIT_SCORED_TOKEN_BYTES)
        return err_set(why, ERR_TOO_LARGE, "token %u has %zu bytes, at most %u", id, n,
                       LIMIT_SCORED_TOKEN_BYTES);
    uint32_t cp;
    enum err_code rc = ERR_OK;
    for (size_t at = utf8_decode(text, n, &cp); at < n && rc == ERR_OK;
         at += utf8_decode(text + at, n - at, &cp)) {
        int32_t left = vocab_find_model(vocab, text, at),
                right = left < 0 ? -1 : vocab_find_model(vocab, text + at, n - at);
        if (right >= 0) rc = push(out, (struct bpe_merge){left, right, (int32_t)id, rank}, why);
    }
    return rc;
}

enum err_code bpe_merges_from_scores(const float *scores, const struct vocab *vocab,
                                     struct bpe_merges *out, struct err *why)
{
    struct scored *order = mem_zalloc_array(vocab->n_ids, sizeof *order);
    if (order == NULL) return err_nomem(why, "merges");
    size_t n = 0;
    for (uint32_t id = 0; id < vocab->n_ids; id++)
        if (vocab->flags[id] & VOCAB_MODEL) order[n++] = (struct scored){scores[id], id};
    qsort(order, n, sizeof *order, by_score);
    enum err_code rc = ERR_OK;
    uint32_t rank = 0;
    for (size_t i = 0; i < n && rc == ERR_OK; i++) {
        if (i > 0 && order[i].score != order[i - 1].score) rank++;
        if (vocab->len[order[i].id] > 0) rc = push_splits(order[i].id, rank, vocab, out, why);
    }
    mem_free(order);
    return rc;
}
