/* bpe_merges.h - the merges of a BPE model as ids, from the three forms that files have.
 * Pure over the caller's storage; used at load. */
#ifndef MOESAIC_TEXT_BPE_MERGES_H
#define MOESAIC_TEXT_BPE_MERGES_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/json.h"
#include "coordinator/text/text_view.h"
#include "coordinator/text/vocab.h"

struct bpe_merge {
    int32_t left, right, whole; /* tokens of the model */
    uint32_t rank;              /* the lowest is merged first; equal ones from left to right */
};

struct bpe_merges { /* zero-initialized is empty */
    struct bpe_merge *data;
    size_t n, cap;
};
void bpe_merges_deinit(struct bpe_merges *m);
enum err_code bpe_merges_push(struct bpe_merges *m, struct bpe_merge merge, struct err *why);
/* The merge of two texts; `joined` is scratch. */
enum err_code bpe_merges_push_ranked(struct bpe_merges *m, struct text_view left,
                                     struct text_view right, size_t rank, const struct vocab *vocab,
                                     struct buf *joined, struct err *why);

/* tokenizer.json: an array of "a b" or ["a", "b"] (tokens may hold spaces), best first. CORRUPT with the number of the
 * merge, EXHAUSTED; so the next one too. */
enum err_code bpe_merges_from_json(const json_t *list, const struct vocab *vocab,
                                   struct bpe_merges *out, struct err *why);

/* GGUF: "a b", cut at the first space that is not its first byte, best first. */
enum err_code bpe_merges_from_texts(const struct text_view *texts, size_t n,
                                    const struct vocab *vocab, struct bpe_merges *out,
                                    struct err *why);

/* SentencePiece has scores and no merges: two neighbors are merged where their concatenation is a token, the highest
 * score first. `scores` has vocab->n_ids numbers. TOO_LARGE (a token of more than LIMIT_SCORED_TOKEN_BYTES), EXHAUSTED. */
enum err_code bpe_merges_from_scores(const float *scores, const struct vocab *vocab,
                                     struct bpe_merges *out, struct err *why);

#endif
