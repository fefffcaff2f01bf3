/* precompiled.h - the normalizer "Precompiled": SentencePiece's table of replacements (a "charsmap"), a
 * double-array trie of what is replaced and a pool of replacements.
 * Immutable after open: any thread. Linear in the text.
 *
 *   bytes   u32 little-endian T | T bytes of u32 units | replacements, each 0-terminated UTF-8
 *   unit    bits 0-7 and 31: label (bit 31 set: a leaf's value, in the bits below); bit 8: has a leaf;
 *           bits 10-30: offset, times 256 if bit 9 is set
 *
 * As in the tokenizers library: a grapheme cluster of less than 6 bytes is looked up as a whole, then
 * each of its characters; the shortest prefix that is in the trie decides, and its replacement stands
 * for all that was looked up. */
#ifndef MOESAIC_TEXT_PRECOMPILED_H
#define MOESAIC_TEXT_PRECOMPILED_H

#include <stddef.h>

#include "common/base/buf.h"
#include "common/base/err.h"

struct precompiled;

/* From the table's bytes (copied), or from their base64 text. CORRUPT, with what and where: a size that does not fit, a
 * replacement outside the pool or inside a character. EXHAUSTED. */
enum err_code precompiled_open(const void *bytes, size_t n, struct precompiled **out,
                               struct err *why);
enum err_code precompiled_open_base64(const char *text, size_t n, struct precompiled **out,
                                      struct err *why);
void precompiled_close(struct precompiled *p);

/* Append the normal form of valid UTF-8. A failed allocation sticks in out->failed. */
void precompiled_run(const struct precompiled *p, const char *text, size_t n, struct buf *out);

#endif
