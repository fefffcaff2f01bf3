/* tokenizer.h - text to token ids and back, as tokenizer.json says. Component types are interpreted,
 * not model families. A struct tokenizer is immutable after open: any thread may use it.
 *
 *   encode: added tokens -> normalizer -> added tokens -> pre_tokenizer -> model (BPE, Unigram) -> post_processor
 *   decode: ids -> bytes of each token -> UTF-8 (text_stream.h does the same piece by piece)
 */
#ifndef MOESAIC_TEXT_TOKENIZER_H
#define MOESAIC_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "coordinator/text/ids.h"

struct tokenizer;
struct vocab_source;

/* Open `dir`/tokenizer.json and, if it is there, `dir`/tokenizer_config.json (bos_token, eos_token,
 * add_bos_token, add_eos_token). NOT_FOUND, CORRUPT (says where), UNSUPPORTED (names the component),
 * EXHAUSTED. */
enum err_code tokenizer_open(const char *dir, struct tokenizer **out, struct err *why);
/* The same from the parts that another container holds (GGUF's metadata); copies what it keeps. What
 * TOKENIZER_ADD_FILE and TOKENIZER_ADD_CONFIG add is then one thing: the bos and eos that it asks for. */
enum err_code tokenizer_open_vocab(const struct vocab_source *source, struct tokenizer **out,
                                   struct err *why);
void tokenizer_close(struct tokenizer *t);

/* Which ids are put around a text's own. */
enum tokenizer_add {
    TOKENIZER_ADD_NONE,
    TOKENIZER_ADD_FILE, /* what the post_processor of tokenizer.json adds */
    TOKENIZER_ADD_CONFIG /* that, then bos (eos) if tokenizer_config.json asks for it and it is not there yet */
};

/* Whose text it is. */
enum tokenizer_special {
    TOKENIZER_PARSE_SPECIAL, /* ours (a rendered template): every added token is recognized */
    TOKENIZER_NO_SPECIAL /* a user's: a spelled-out control token stays plain text. Control is every added
                                token but those that are white space and not special (runs of spaces). */
};

/* Replace what is in `out` (zero-initialized or used before) by the ids of n bytes. Each maximal
 * invalid part of the text counts as one U+FFFD. TOO_LARGE, INVALID (a regular expression gives up),
 * EXHAUSTED; on failure `out` is empty. */
enum err_code tokenizer_encode(const struct tokenizer *t, const char *text, size_t n,
                               enum tokenizer_add add, enum tokenizer_special special,
                               struct ids *out, struct err *why);

/* Append the text of n ids to `out`; always valid UTF-8. Ids without a token (a model's head may have
 * more rows than there are tokens) give nothing; a negative one is INVALID. */
enum err_code tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n,
                               bool skip_special, struct buf *out, struct err *why);

/* The bytes that one token stands for inside a text; they need not be UTF-8. Borrowed, not
 * 0-terminated; NULL if there is no such token. */
const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *n);

int32_t tokenizer_bos(const struct tokenizer *t);         /* -1: none */
int32_t tokenizer_eos(const struct tokenizer *t);         /* -1: none */
uint32_t tokenizer_vocab_size(const struct tokenizer *t); /* highest id + 1 */
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);
/* The id whose text in the file is exactly this ("<|im_end|>"), or -1. */
int32_t tokenizer_find(const struct tokenizer *t, const char *text, size_t n);

/* For text_stream: characters to drop from the start of a text, and the bytes of its first token where
 * they differ (false: they do not; else they are appended to `out`). */
size_t tokenizer_strip_left(const struct tokenizer *t, char *which);
bool tokenizer_first_bytes(const struct tokenizer *t, int32_t id, struct buf *out);

#endif
