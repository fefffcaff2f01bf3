/* bpe.h - byte pair encoding: one piece of text to ids by merging neighbors, lowest rank first,
 * leftmost first among equals. O(n log n) in the length of the piece.
 * Immutable after open: any thread. A bpe_work belongs to one call. */
#ifndef MOESAIC_TEXT_BPE_H
#define MOESAIC_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "coordinator/text/bpe_merges.h"
#include "coordinator/text/ids.h"
#include "coordinator/text/vocab.h"

struct bpe;

struct bpe_spec {
    const struct bpe_merge *merges; /* of tokens of the model; see bpe_merges.h. Not kept */
    size_t n_merges;
    int32_t unk; /* -1: none */
    bool
        byte_fallback; /* a character without a token becomes <0xXX> tokens where all of them exist */
    bool fuse_unk;     /* a run of unknown characters is one unknown token */
    bool ignore_merges; /* a piece that is a token is that token, whatever merging would give */
};

/* `vocab` (borrowed, must outlive) holds the texts already; the model's are flagged VOCAB_MODEL.
 * TOO_LARGE, EXHAUSTED. */
enum err_code bpe_open(const struct bpe_spec *spec, const struct vocab *vocab, struct bpe **out,
                       struct err *why);
void bpe_close(struct bpe *b);

struct
    bpe_work { /* scratch, zero-initialized is empty; kept between pieces so that words cost no allocation */
    struct bpe_symbol *symbols;
    uint64_t *heap; /* rank << 32 | position */
    size_t symbols_cap, heap_cap, heap_len;
};
void bpe_work_deinit(struct bpe_work *w);

/* Append the ids of n bytes of valid UTF-8 (at most LIMIT_ENCODE_BYTES). With `no_control` a whole
 * piece that spells a control token is not taken for it. A character without a token becomes bytes,
 * the unknown token, or nothing, as the file says. */
enum err_code bpe_encode(const struct bpe *b, struct bpe_work *w, const char *piece, size_t n,
                         bool no_control, struct ids *out, struct err *why);

#endif
