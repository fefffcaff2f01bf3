/* gguf_values.h - inside common/modelfile only: what parsing a GGUF header and looking things up in it share. */
#ifndef MOESAIC_MODELFILE_GGUF_VALUES_H
#define MOESAIC_MODELFILE_GGUF_VALUES_H

#include <stddef.h>
#include <stdint.h>

#include "common/modelfile/gguf.h"

uint32_t gguf_type_bytes(enum gguf_type t); /* of one; 0: not of one size */
uint64_t gguf_little_endian(const uint8_t *p, size_t width);
int gguf_compare_texts(struct gguf_text a, struct gguf_text b);

#endif
