/* byte_level.h - the table that shows each byte as a printable character, so that a vocabulary of
 * arbitrary bytes is a vocabulary of strings: printable Latin-1 stands for itself, the other 68 bytes
 * are U+0100, U+0101, ... in order. Pure, any thread. */
#ifndef MOESAIC_TEXT_BYTE_LEVEL_H
#define MOESAIC_TEXT_BYTE_LEVEL_H

#include <stdint.h>

static inline uint32_t byte_level_char(uint8_t byte)
{
    if (byte <= 32) return 256u + byte;
    if (byte >= 127 && byte <= 160) return 256u + 33u + (byte - 127u);
    return byte == 173 ? 256u + 67u : byte;
}

/* -1 for a character that is not in the table. */
static inline int byte_level_byte(uint32_t cp)
{
    if (cp >= 256) {
        if (cp <= 288) return (int)cp - 256;
        if (cp <= 322) return (int)cp - 289 + 127;
        return cp == 323 ? 173 : -1;
    }
    return cp <= 32 || (cp >= 127 && cp <= 160) || cp == 173 ? -1 : (int)cp;
}

#endif
