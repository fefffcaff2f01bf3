/* unigram.h - a unigram language model: one piece of text to the ids whose scores have the largest sum.
 * One pass from left to right; time is the length of the piece times that of the longest token.
 * Immutable after open: any thread. A unigram_work belongs to one call.
 * Source: Kudo 2018, "Subword regularization"; ties, unknown characters and their runs as in the
 * tokenizers library (the first way found wins; a run of unknown characters is one token). */
#ifndef MOESAIC_TEXT_UNIGRAM_H
#define MOESAIC_TEXT_UNIGRAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "coordinator/text/ids.h"
#include "coordinator/text/vocab.h"

struct unigram;

struct unigram_spec {
    const double *scores; /* [vocab->n_ids], finite where the token is VOCAB_MODEL; copied */
    double min_score;     /* an unknown character scores 10 less */
    int32_t unk;          /* -1: none */
    bool byte_fallback;   /* unknown text becomes <0xXX> tokens where all of them exist */
};

/* `vocab` (borrowed, must outlive) holds the model's texts already, flagged VOCAB_MODEL. EXHAUSTED. */
enum err_code unigram_open(const struct unigram_spec *spec, const struct vocab *vocab,
                           struct unigram **out, struct err *why);
void unigram_close(struct unigram *u);

struct unigram_work { /* scratch, zero-initialized is empty; kept between pieces */
    struct unigram_node *nodes;
    size_t nodes_cap;
    struct ids reversed;
    uint64_t steps; /* bytes looked at in the trie so far, over all pieces */
};
void unigram_work_deinit(struct unigram_work *w);

/* Append the ids of n bytes of valid UTF-8 (at most LIMIT_ENCODE_BYTES). With `no_control` no token
 * flagged VOCAB_CONTROL is taken, but for the unknown one. INVALID when a character has no token and
 * the model no unknown one. */
enum err_code unigram_encode(const struct unigram *u, struct unigram_work *w, const char *piece,
                             size_t n, bool no_control, struct ids *out, struct err *why);

#endif
