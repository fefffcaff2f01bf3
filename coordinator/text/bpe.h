/* bpe.h - byte pair encoding: one piece of text to ids by merging neighbors, lowest rank first,
 * leftmost first among equals. O(n log n) in the length of the piece.
 * Immutable after open: any thread. A bpe_work belongs to one call. */
#ifndef MOESAIC_TEXT_BPE_H
#define MOESAIC_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/json.h"
#include "coordinator/text/ids.h"
#include "coordinator/text/vocab.h"

struct bpe;

/* `model`: the "model" object of tokenizer.json. `vocab` (borrowed, must outlive) holds its texts
 * already, flagged VOCAB_MODEL. CORRUPT, UNSUPPORTED, EXHAUSTED. */
enum err_code bpe_open(const json_t *model, const struct vocab *vocab, struct bpe **out,
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
