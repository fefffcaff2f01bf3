/* random_model.h - models with random weights in the shapes of published ones, for measurements: what they answer means
 * nothing, but each token goes through as many bytes and multiplications as in the real one. */
#ifndef MOESAIC_CLI_RANDOM_MODEL_H
#define MOESAIC_CLI_RANDOM_MODEL_H

#include <stdint.h>

#include "common/base/err.h"
#include "common/modelfile/hparams.h"

struct random_shape {
    const char *name; /* of the published model; static */
    enum family family;
    uint32_t all_layers; /* of the published model */
    uint32_t layers, hidden, width, experts, top_k, heads, kv_heads, head_dim, vocab;
};

/* "NAME" or "NAME,layers=4,hidden=512,...": a published shape with some numbers changed. INVALID says what is possible. */
enum err_code random_shape_parse(const char *text, struct random_shape *out, struct err *why);
/* The names, with ", " between. */
const char *random_shape_names(void);

/* Of all tensors, 16 bits each. */
uint64_t random_model_bytes(const struct random_shape *s);

/* Write a Hugging Face folder (config.json, tokenizer.json, model.safetensors with bf16 weights). It is made if need be;
 * files in it are replaced. The same shape gives the same bytes. IO, EXHAUSTED. */
enum err_code random_model_write(const char *folder, const struct random_shape *s, struct err *why);
/* Remove these files and the folder. */
void random_model_remove(const char *folder);

#endif
