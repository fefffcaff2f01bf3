/* pretokenizer.h - the "pre_tokenizer" of tokenizer.json: cuts a text into pieces that merges never
 * cross. Immutable after open: any thread; a pieces object belongs to one call. */
#ifndef MOESAIC_TEXT_PRETOKENIZER_H
#define MOESAIC_TEXT_PRETOKENIZER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/json.h"
#include "coordinator/text/regex.h"

struct pretokenizer;

/* `spec` may be NULL or JSON null: one piece. UNSUPPORTED names the component. */
enum err_code pretokenizer_open(const json_t *spec, struct pretokenizer **out, struct err *why);
/* What byte-level models have in common: cut by each expression in turn (the list ends with NULL), Isolated, then show
 * each byte as a character. */
enum err_code pretokenizer_open_bytes(const char *const *regexes, struct pretokenizer **out,
                                      struct err *why);
void pretokenizer_close(struct pretokenizer *p);

struct span {
    size_t off, len; /* bytes of pieces.text; len > 0 */
};

struct pieces { /* zero-initialized is empty; kept between texts so that most need no allocation */
    struct buf text;
    struct span *spans;
    size_t n, cap;
    struct buf spare_text; /* the next step's result while it is made */
    struct span *spare;
    size_t spare_n, spare_cap;
};
void pieces_deinit(struct pieces *s);

/* Replace what is in `out` by the pieces of valid UTF-8. `at_start`: this text begins the whole input. */
enum err_code pretokenizer_run(const struct pretokenizer *p, struct regex_work *w, const char *text,
                               size_t n, bool at_start, struct pieces *out, struct err *why);

#endif
