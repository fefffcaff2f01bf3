/* vocab.h - token texts and ids, both ways. Filled once at load, then immutable: any thread.
 * Ids may have holes (a model's own vocabulary and the added tokens need not touch). */
#ifndef MOESAIC_TEXT_VOCAB_H
#define MOESAIC_TEXT_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"

enum vocab_flag {
    VOCAB_MODEL = 1,   /* in model.vocab: the model may produce it from text */
    VOCAB_ADDED = 2,   /* in added_tokens */
    VOCAB_SPECIAL = 4, /* left out when decoding with skip_special */
    VOCAB_CONTROL = 8  /* never recognized in untrusted text */
};

struct vocab {
    struct buf bytes;    /* all texts, one after the other */
    uint32_t *off, *len; /* [n_ids] */
    uint8_t *flags;      /* [n_ids], 0: a hole */
    uint32_t n_ids;
    uint64_t *slots; /* [mask + 1] hash << 32 | id + 1, or 0; open addressing */
    uint32_t mask;
};

/* Room for ids 0..n_ids-1 (at most LIMIT_VOCAB). */
enum err_code vocab_init(struct vocab *v, uint32_t n_ids, struct err *why);
void vocab_deinit(struct vocab *v);

/* Give `id` a text and flags. Adding the same pair again only adds flags. CORRUPT when the id has
 * another text or the text another id. */
enum err_code vocab_add(struct vocab *v, uint32_t id, const char *text, size_t n, unsigned flags,
                        struct err *why);

int32_t vocab_find(const struct vocab *v, const char *text, size_t n); /* -1 if absent */
int32_t vocab_find_model(const struct vocab *v, const char *text,
                         size_t n); /* only tokens of model.vocab */
/* NULL for a hole or an id that is out of range. Not 0-terminated. */
const char *vocab_text(const struct vocab *v, int32_t id, size_t *n);
unsigned vocab_flags(const struct vocab *v, int32_t id); /* 0 if there is no such token */
/* ids[b]: the model's token <0xXX> of byte b, or -1. */
void vocab_byte_tokens(const struct vocab *v, int32_t ids[256]);

#endif
