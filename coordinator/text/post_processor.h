/* post_processor.h - the "post_processor" of tokenizer.json: ids put before and after a text's own.
 * Immutable after init: any thread. */
#ifndef MOESAIC_TEXT_POST_PROCESSOR_H
#define MOESAIC_TEXT_POST_PROCESSOR_H

#include "common/base/err.h"
#include "common/base/json.h"
#include "coordinator/text/ids.h"
#include "coordinator/text/vocab.h"

struct post_processor {
    struct ids prefix, suffix;
};

/* `spec` may be NULL or JSON null: nothing is added. Ids must be in `vocab`. UNSUPPORTED names the type. */
enum err_code post_processor_init(struct post_processor *p, const json_t *spec,
                                  const struct vocab *vocab, struct err *why);
void post_processor_deinit(struct post_processor *p);

#endif
