/* json.h - JSON with bounds. Values are jansson's, whose memory comes from mem.h; size and depth are checked while
 * reading. Any thread (a json_t has one owner at a time). */
#ifndef MOESAIC_BASE_JSON_H
#define MOESAIC_BASE_JSON_H

#include <jansson.h>
#include <stddef.h>

#include "common/base/err.h"

/* Parse n bytes (need not be 0-terminated; may hold \u0000 in strings but not in keys; a key that is there twice is
 * refused). An integer beyond 64 bits becomes a real. max_depth counts nested arrays and objects. Gives a new
 * reference. INVALID on any fault, with line, column and reason; EXHAUSTED when memory is short. */
enum err_code json_parse(const char *text, size_t n, unsigned max_depth, json_t **out,
                         struct err *why);

/* Read a whole file of at most max_bytes and parse it. CORRUPT if malformed, NOT_FOUND if absent, IO. */
enum err_code json_parse_file(const char *path, size_t max_bytes, unsigned max_depth, json_t **out,
                              struct err *why);

/* Serialise compactly, keys in insertion order; 0-terminated, mem_free. NULL if memory is short. */
char *json_to_text(const json_t *value);

#endif
