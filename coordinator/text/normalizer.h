/* normalizer.h - the "normalizer" of tokenizer.json: text to text. Immutable after open: any thread. */
#ifndef MOESAIC_TEXT_NORMALIZER_H
#define MOESAIC_TEXT_NORMALIZER_H

#include <stddef.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/json.h"
#include "coordinator/text/regex.h"

struct normalizer;

/* `spec` may be NULL or JSON null: a normalizer that changes nothing. UNSUPPORTED names the component. */
enum err_code normalizer_open(const json_t *spec, struct normalizer **out, struct err *why);
/* The same after a Precompiled of the n bytes of `table`; 0 bytes: none. */
enum err_code normalizer_open_with_table(const void *table, size_t n, const json_t *spec,
                                         struct normalizer **out, struct err *why);
void normalizer_close(struct normalizer *z);

/* Replace what is in `out` by the normalized form of valid UTF-8. */
enum err_code normalizer_run(const struct normalizer *z, struct regex_work *w, const char *text,
                             size_t n, struct buf *out, struct err *why);

#endif
