/* regex.h - the regular expressions of tokenizer.json. Those files are written for Oniguruma (Ruby
 * syntax); the pattern is translated where PCRE2 reads the same text otherwise and refused where the
 * two cannot be made to agree. A compiled regex is immutable: any thread; a regex_work belongs to
 * one call. */
#ifndef MOESAIC_TEXT_REGEX_H
#define MOESAIC_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/buf.h"
#include "common/base/err.h"

struct regex;
struct regex_work;

/* `where` names the component in errors. UNSUPPORTED: a construct with no equal in PCRE2. CORRUPT. */
enum err_code regex_open(const char *pattern, size_t n, const char *where, struct regex **out,
                         struct err *why);
void regex_close(struct regex *r);

enum err_code regex_work_open(struct regex_work **out, struct err *why);
void regex_work_close(struct regex_work *w);

/* The leftmost match at or after `from` in valid UTF-8. *found false: none. INVALID when the text
 * makes the pattern backtrack beyond its limit. */
enum err_code regex_find(const struct regex *r, struct regex_work *w, const char *text, size_t n,
                         size_t from, bool *found, size_t *start, size_t *end, struct err *why);

/* Append `text` with every match replaced by the literal `with`. */
enum err_code regex_replace(const struct regex *r, struct regex_work *w, const char *text, size_t n,
                            const char *with, size_t with_n, struct buf *out, struct err *why);

#endif
