/* marker_scanner.h - markers ("<tool_call>") in a stream of bytes: what may become one is held back until it is clear.
 * Which markers count may change after every byte and every marker that came out. None may be the beginning of another.
 * In the caller's storage, no allocation.
 *
 *     marker_scanner_push(s, c);
 *     while ((what = marker_scanner_next(s, false, &byte, &marker)) != MARKER_NONE) ...   */
#ifndef MOESAIC_TEXT_MARKER_SCANNER_H
#define MOESAIC_TEXT_MARKER_SCANNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MARKER_MAX_BYTES 48u
#define MARKERS_MAX      16u

struct marker_scanner {
    const char *texts[MARKERS_MAX]; /* borrowed; NULL: no such marker */
    uint8_t lens[MARKERS_MAX];
    uint32_t enabled; /* bit m: marker m counts */
    char held[MARKER_MAX_BYTES + 1];
    size_t n_held;
};

enum marker_what { MARKER_NONE, MARKER_BYTE, MARKER_FOUND };

void marker_scanner_set(struct marker_scanner *s, uint32_t marker, const char *text);
void marker_scanner_push(struct marker_scanner *s, char c); /* only when next said NONE */
/* What comes next: a byte of text, a marker, or nothing until more is pushed. `last`: nothing more will be, so what is
 * held is text. */
enum marker_what marker_scanner_next(struct marker_scanner *s, bool last, char *byte,
                                     uint32_t *marker);

#endif
