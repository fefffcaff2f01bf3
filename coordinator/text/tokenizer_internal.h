/* tokenizer_internal.h - the parts of a tokenizer, for the files that fill it (tokenizer_json.c,
 * tokenizer_vocab.c) and the one that runs it (tokenizer.c). */
#ifndef MOESAIC_TEXT_TOKENIZER_INTERNAL_H
#define MOESAIC_TEXT_TOKENIZER_INTERNAL_H

#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/post_processor.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/token_decoder.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/unigram.h"
#include "coordinator/text/vocab.h"

struct tokenizer {
    struct vocab vocab;
    struct bpe *bpe; /* one of the two */
    struct unigram *unigram;
    struct normalizer *normalizer;
    struct pretokenizer *pretokenizer;
    struct post_processor post;
    struct token_decoder decoder;
    struct added_tokens raw;        /* "normalized": false, looked for before normalizing */
    struct added_tokens normalized; /* looked for after; their texts are normalized */
    struct buf bytes;               /* what each token decodes to, one after the other */
    uint32_t *bytes_off;            /* [n_ids + 1] */
    int32_t bos, eos;               /* -1: none */
    bool add_bos, add_eos;
};

/* What a file says of an added token, but for its id and text. */
struct added_flags {
    bool single_word, lstrip, rstrip;
    bool normalized; /* looked for after normalizing */
    bool special;    /* left out of text for people */
};

/* Enter the token and decide whether it is control. `where` names it in errors. The normalizer must be open. */
enum err_code tokenizer_put_added(struct tokenizer *t, int32_t id, const char *text, size_t n,
                                  struct added_flags flags, const char *where, struct err *why);

/* Last step of loading: decode every token once, so that decoding later is copying. */
enum err_code tokenizer_make_bytes(struct tokenizer *t, struct err *why);

#endif
