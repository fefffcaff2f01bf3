#include "coordinator/text/marker_scanner.h"

#include <assert.h>
#include <string.h>

void marker_scanner_set(struct marker_scanner *s, uint32_t marker, const char *text)
{
    size_t n = strlen(text);
    assert(marker < MARKERS_MAX && n > 0 && n <= MARKER_MAX_BYTES);
    s->texts[marker] = text;
    s->lens[marker] = (uint8_t)n;
}

void marker_scanner_push(struct marker_scanner *s, char c)
{
    assert(s->n_held < sizeof s->held); /* what is held is shorter than some marker */
    s->held[s->n_held++] = c;
}

static void drop(struct marker_scanner *s, size_t n)
{
    s->n_held -= n;
    memmove(s->held, s->held + n, s->n_held);
}

enum marker_what marker_scanner_next(struct marker_scanner *s, bool last, char *byte,
                                     uint32_t *marker)
{
    if (s->n_held == 0) return MARKER_NONE;
    bool may_become = false;
    for (uint32_t m = 0; m < MARKERS_MAX; m++) {
        size_t n = s->lens[m];
        if ((s->enabled >> m & 1) == 0 || n == 0) continue;
        if (s->n_held >= n && memcmp(s->held, s->texts[m], n) == 0) {
            drop(s, n);
            *marker = m;
            return MARKER_FOUND;
        }
        may_become |= s->n_held < n && memcmp(s->held, s->texts[m], s->n_held) == 0;
    }
    if (may_become && !last) return MARKER_NONE;
    *byte = s->held[0];
    drop(s, 1);
    return MARKER_BYTE;
}
