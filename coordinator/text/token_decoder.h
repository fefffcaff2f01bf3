/* token_decoder.h - the "decoder" of tokenizer.json, cut in two so that it can stream: what it does to
 * each token alone, and what it does to the beginning of the whole text.
 * Immutable after init: any thread. */
#ifndef MOESAIC_TEXT_TOKEN_DECODER_H
#define MOESAIC_TEXT_TOKEN_DECODER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/json.h"
#include "common/base/limits.h"

struct token_decoder {
    struct token_decoder_step {
        int kind;
        char *from, *to;
        size_t from_n, to_n, start, stop;
    } steps[LIMIT_TOKENIZER_OPS];
    size_t n;
    bool first_differs; /* the first token of a text is decoded otherwise (Metaspace) */
    char strip; /* this character, at most strip_left times, is dropped from the text's start */
    size_t strip_left;
};

/* UNSUPPORTED names the component, also where it could not stream (a Strip of the text's end). */
enum err_code token_decoder_init(struct token_decoder *d, const json_t *spec, struct err *why);
void token_decoder_deinit(struct token_decoder *d);

/* Append the bytes (not always UTF-8) of one token's text. */
void token_decoder_put(const struct token_decoder *d, const char *text, size_t n, bool first,
                       struct buf *out);

#endif
