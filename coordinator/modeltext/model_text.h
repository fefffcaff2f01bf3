/* model_text.h - a model's tokenizer and chat template, wherever its files hold them: tokenizer.json and its like in a folder,
 * or the metadata of a GGUF file. Any thread. */
#ifndef MOESAIC_MODELTEXT_H
#define MOESAIC_MODELTEXT_H

#include "common/base/err.h"

struct chat_template;
struct tokenizer;

/* `path`: a folder, a GGUF file, or a folder with one. Errors as tokenizer_open and gguf_set_open have them. */
enum err_code model_text_tokenizer(const char *path, struct tokenizer **out, struct err *why);
/* NOT_FOUND: the model has no template. */
enum err_code model_text_template(const char *path, struct chat_template **out, struct err *why);

#endif
