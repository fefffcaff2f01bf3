/* experts_spec.h - a set of (layer, expert), and the text by which people name one. One thread per set.
 *
 *   SPEC  = ITEM {"," ITEM}
 *   ITEM  = "all" | I "/" N | RANGE ":" RANGE       I/N: every expert with (layer + expert) mod N = I
 *   RANGE = "*" | NUMBER | NUMBER "-" NUMBER        both ends included, from 0
 *
 * Layers without experts are passed over by "all", I/N, "*" and ranges; naming one alone is an error. */
#ifndef MOESAIC_MODELFILE_EXPERTS_SPEC_H
#define MOESAIC_MODELFILE_EXPERTS_SPEC_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/modelfile/hparams.h"

struct expert_set {
    uint32_t n_layers, n_experts;
    uint64_t *bits; /* bit layer * n_experts + expert */
};

/* Empty. EXHAUSTED. */
enum err_code expert_set_init(struct expert_set *s, uint32_t n_layers, uint32_t n_experts,
                              struct err *why);
void expert_set_deinit(struct expert_set *s);

void expert_set_add(struct expert_set *s, uint32_t layer, uint32_t expert);
bool expert_set_has(const struct expert_set *s, uint32_t layer, uint32_t expert);
uint32_t expert_set_count(const struct expert_set *s);
uint32_t expert_set_count_layer(const struct expert_set *s, uint32_t layer);

/* Parse into a new set. INVALID names the item and the bound it breaks; EXHAUSTED. */
enum err_code experts_spec_parse(const char *spec, const struct hparams *hp, struct expert_set *out,
                                 struct err *why);

/* Append a short SPEC that parses to the same set; "" for the empty set. Equal layers share an item. */
void experts_spec_print(const struct expert_set *s, const struct hparams *hp, struct buf *out);

#endif
