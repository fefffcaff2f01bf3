/* vocab_pre.h - the names of tokenizer.ggml.pre and what they stand for: where a byte-level BPE cuts a text. A table;
 * any thread. */
#ifndef MOESAIC_TEXT_VOCAB_PRE_H
#define MOESAIC_TEXT_VOCAB_PRE_H

#include <stdbool.h>

#include "coordinator/text/text_view.h"

struct vocab_pre {
    const char *names; /* between spaces, one before and after each */
    const char *const
        *regexes;       /* in order, each applied to the pieces of the one before; ends with NULL */
    bool nfc;           /* the model's own tokenizer composes first (GGUF does not say so) */
    bool ignore_merges; /* a piece that is a token is that token */
    bool add_bos;       /* when the file does not say */
};

/* NULL for a name that is not known. */
const struct vocab_pre *vocab_pre_find(struct text_view name);

#endif
