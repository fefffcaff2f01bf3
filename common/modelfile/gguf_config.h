/* gguf_config.h - what config.json would say of the model in a GGUF file. Pure over an opened set, any thread.
 *
 * GGUF names the same numbers otherwise, and leaves some out: those are the family's published ones, listed in
 * gguf_config.c. Which layers have experts, biases and the like follows from the tensors that are there. */
#ifndef MOESAIC_MODELFILE_GGUF_CONFIG_H
#define MOESAIC_MODELFILE_GGUF_CONFIG_H

#include <jansson.h>
#include <stdbool.h>

#include "common/base/err.h"
#include "common/modelfile/gguf_set.h"

/* Gives an object with config.json's keys (for hparams_read_object). Of a set opened in part, what depends on tensors that
 * are not here is left at its default. CORRUPT and UNSUPPORTED name the key; an unknown architecture is UNSUPPORTED, with
 * the known ones in the text. EXHAUSTED. */
enum err_code gguf_config(const struct gguf_set *s, json_t **out, struct err *why);

/* Whether the rows of q and k (and their biases) are in another order: per head, the file's row 2i is the checkpoint's row
 * i, and 2i + 1 its row i + head_dim / 2. So it is for some architectures. */
bool gguf_config_permuted(const struct gguf_set *s);

#endif
