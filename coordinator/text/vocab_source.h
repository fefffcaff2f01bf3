/* vocab_source.h - a tokenizer's parts as a container other than tokenizer.json holds them (the "tokenizer.*" keys of
 * GGUF), for tokenizer_open_vocab and chat_template_open_vocab. Everything is borrowed until the call returns; nothing is
 * trusted. Whoever reads the container fills it: VOCAB_SOURCE_NONE first, then what is there. */
#ifndef MOESAIC_TEXT_VOCAB_SOURCE_H
#define MOESAIC_TEXT_VOCAB_SOURCE_H

#include <stdint.h>

#include "common/base/err.h"
#include "coordinator/text/ids.h"
#include "coordinator/text/text_view.h"

enum vocab_type { /* the numbers of tokenizer.ggml.token_type */
                  VOCAB_TYPE_NORMAL = 1,
                  VOCAB_TYPE_UNKNOWN,
                  VOCAB_TYPE_CONTROL,
                  VOCAB_TYPE_USER,
                  VOCAB_TYPE_UNUSED,
                  VOCAB_TYPE_BYTE
};

/* A yes or no that may be missing. */
enum { VOCAB_UNSAID = -1, VOCAB_NO = 0, VOCAB_YES = 1 };

struct vocab_source {
    const char *name; /* of the file, for errors */
    struct text_view
        architecture; /* general.architecture: says what has no key of its own (phimoe's flags) */
    struct text_view model; /* tokenizer.ggml.model: "gpt2", "llama", "t5" */
    struct text_view pre;   /* .pre; gpt2 only */
    const struct text_view
        *tokens; /* [n_tokens] by id; llama and t5 write a space as U+2581, gpt2 each byte as a
                                       character */
    size_t n_tokens;
    const int32_t *types; /* [n_types]: n_tokens of them, or none */
    size_t n_types;
    const float *scores; /* [n_scores]: n_tokens of them for llama and t5 */
    size_t n_scores;
    const struct text_view *merges; /* "left right", best first; gpt2 only */
    size_t n_merges;
    struct text_view charsmap;                    /* .precompiled_charsmap; t5 only */
    int64_t bos, eos, eot, eom, unknown, padding; /* ids; -1: none */
    int add_bos, add_eos, add_space_prefix, remove_extra_whitespaces; /* VOCAB_UNSAID, .. */
    struct text_view chat_template;                                   /* tokenizer.chat_template */
};

#define VOCAB_SOURCE_NONE                                                                          \
    {                                                                                              \
        .bos = -1, .eos = -1, .eot = -1, .eom = -1, .unknown = -1, .padding = -1,                  \
        .add_bos = VOCAB_UNSAID, .add_eos = VOCAB_UNSAID, .add_space_prefix = VOCAB_UNSAID,        \
        .remove_extra_whitespaces = VOCAB_UNSAID                                                   \
    }

/* Append the ids that end a generation: eos, eot and eom, and what is such an end by its text in the families that have
 * it ("<|im_end|>", "<|eot_id|>", ..), each once. gpt-oss's "<|end|>" is none. False when memory is short. */
bool vocab_source_ends(const struct vocab_source *s, struct ids *out);

#endif
