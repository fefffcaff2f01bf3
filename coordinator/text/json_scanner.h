/* json_scanner.h - is this JSON so far? Byte by byte, for text that is still being written. Strict (RFC 8259), nested at
 * most LIMIT_JSON_DEPTH deep. Nothing is built and nothing allocated. In the caller's storage, {0} is ready. */
#ifndef MOESAIC_TEXT_JSON_SCANNER_H
#define MOESAIC_TEXT_JSON_SCANNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/limits.h"

enum json_scan {
    JSON_SCAN_MORE,
    JSON_SCAN_DONE,  /* the value ends with this byte */
    JSON_SCAN_PAST,  /* a number at the top ended before this byte, which is no part of it */
    JSON_SCAN_BROKEN /* no JSON begins like this */
};

struct json_scanner {
    uint8_t state, left; /* left: of a literal or of \uXXXX */
    const char *literal; /* what remains of true, false, null */
    bool key;            /* the string under way is a key */
    uint32_t depth;      /* open arrays and objects */
    uint64_t arrays;     /* bit d: the one at depth d is an array */
};
_Static_assert(LIMIT_JSON_DEPTH <= 64, "one bit for each level");

/* Space before the value counts as MORE. After DONE, PAST or BROKEN: not to be called. */
enum json_scan json_scanner_byte(struct json_scanner *s, char c);
/* Would the text be a whole value if it ended here? (True for a number that might go on.) */
bool json_scanner_may_end(const struct json_scanner *s);

/* The text of a JSON string, byte by byte from behind its opening quote; {0} is ready. What \u spells leaves when it is
 * whole; half a surrogate pair is U+FFFD. */
struct json_text {
    uint8_t state, left;
    uint32_t unit, high; /* of \uXXXX; a high surrogate that waits for its other half */
};
/* Appends what the byte completes. MORE, DONE (the closing quote) or BROKEN. */
enum json_scan json_text_byte(struct json_text *t, char c, struct buf *out);

#endif
