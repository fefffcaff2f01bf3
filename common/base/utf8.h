/* utf8.h - UTF-8 as WHATWG, Rust and Python read it: each maximal subpart of an invalid sequence is one
 * U+FFFD. Pure functions, any thread. */
#ifndef MOESAIC_BASE_UTF8_H
#define MOESAIC_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UTF8_REPLACEMENT 0xFFFDu

/* Read one code point from n > 0 bytes; invalid or cut: U+FFFD. Returns the bytes used (>= 1). */
size_t utf8_decode(const char *s, size_t n, uint32_t *code_point);

/* Like utf8_decode, but 0 when the n bytes are a proper prefix of a valid character (more may come). */
size_t utf8_decode_stream(const char *s, size_t n, uint32_t *code_point);

/* Write 1..4 bytes; surrogates and values over 10FFFF become U+FFFD. Returns the count. */
size_t utf8_encode(uint32_t code_point, char out[4]);

bool utf8_valid(const char *s, size_t n);

#endif
