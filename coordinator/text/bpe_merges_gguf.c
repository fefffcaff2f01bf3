/* Merges as GGUF has them: texts, or none but scores. */
#include <stdlib.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "coordinator/text/bpe_merges.h"

static bool text_halves(struct text_view merge, struct text_view *left, struct text_view *right)
{
    const char *space = merge.n < 3 ? NULL : memchr(merge.data + 1, ' ', merge.n - 2);
    if (space == NULL) return false;
    *left = (struct text_view){merge.data, (size_t)(space - merge.data)};
    *right = (struct text_view){space + 1, merge.n - left->n - 1};
    return true;
}

enum err_code bpe_merges_from_texts(const struct text_view *texts, size_t n,
                                    const struct vocab *vocab, struct bpe_merges *out,
                                    struct err *why)
{
    struct text_view left, right;
    struct buf joined = {0};
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < n && rc == ERR_OK; i++)
        rc = text_halves(texts[i], &left, &right)
                 ? bpe_merges_push_ranked(out, left, right, i, vocab, &joined, why)
                 : err_set(why, ERR_CORRUPT, "merge %zu is not two tokens", i);
    buf_free(&joined);
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
        if (right >= 0)
            rc = bpe_merges_push(out, (struct bpe_merge){left, right, (int32_t)id, rank}, why);
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
