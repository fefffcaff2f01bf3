/* unicode.h - the character classes and normal forms that tokenizers ask for. Pure, any thread. */
#ifndef MOESAIC_TEXT_UNICODE_H
#define MOESAIC_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

bool unicode_is_space(uint32_t cp);       /* property White_Space */
bool unicode_is_numeric(uint32_t cp);     /* Nd, Nl, No */
bool unicode_is_word(uint32_t cp);        /* letters, marks, numbers, connector punctuation */
bool unicode_is_punctuation(uint32_t cp); /* ASCII punctuation and P* */

enum unicode_form { UNICODE_NFC, UNICODE_NFD, UNICODE_NFKC, UNICODE_NFKD };

/* Append the normal form of valid UTF-8. Linear also for long runs of combining marks, which is why
 * the reordering is ours. A failed allocation sticks in out->failed. */
void unicode_normalize(enum unicode_form form, const char *text, size_t n, struct buf *out);

#endif
