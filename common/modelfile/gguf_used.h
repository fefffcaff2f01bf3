/* gguf_used.h - does a GGUF file hold tensors that its family does not know? A norm, bias or scale that is passed over makes
 * other numbers without a word, so that is refused. Pure, any thread. */
#ifndef MOESAIC_MODELFILE_GGUF_USED_H
#define MOESAIC_MODELFILE_GGUF_USED_H

#include "common/base/err.h"
#include "common/modelfile/gguf_set.h"
#include "common/modelfile/hparams.h"

/* Each tensor is one that a role may lie in, rope factors (which gguf_config has read), or of a layer behind the last, for
 * multi-token prediction. Else UNSUPPORTED, the tensor named. EXHAUSTED. */
enum err_code gguf_check_used(const struct gguf_set *s, const struct hparams *hp, struct err *why);

#endif
