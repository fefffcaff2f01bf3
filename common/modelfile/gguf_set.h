/* gguf_set.h - a model's GGUF file, or the parts of one that is split: mapped, checked, one table of all tensors.
 * Immutable after open, any thread.
 *
 * Parts are called <prefix>-00001-of-00003.gguf and so on; all of the model's metadata is in the first. */
#ifndef MOESAIC_MODELFILE_GGUF_SET_H
#define MOESAIC_MODELFILE_GGUF_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/modelfile/gguf.h"
#include "common/modelfile/mapped_file.h"

struct gguf_part {
    char *path;
    struct mapped_file *file; /* NULL: not on this machine (opened in part) */
    struct gguf head;
};

struct gguf_set {
    struct gguf_part *parts; /* in order */
    uint32_t n_parts, n_absent;
    struct gguf_entry { /* all tensors of all parts, in order of their names (strcmp) */
        const struct gguf_tensor *tensor;
        uint32_t part;
    } * entries;
    uint32_t n_entries;
};

/* `path`: a .gguf file, any part of a split one, or a folder that holds exactly one model's (files called mmproj*, which
 * are not for text, are passed over). NOT_FOUND names the part that is not there, unless `in_part`, where only the first
 * must be; INVALID: a folder with several models (two are named); CORRUPT, UNSUPPORTED, IO, EXHAUSTED. Texts
 * begin with the file's path. On failure `out` is empty. */
enum err_code gguf_set_open(const char *path, bool in_part, struct gguf_set *out, struct err *why);
void gguf_set_close(struct gguf_set *s);

const struct gguf *gguf_set_meta(const struct gguf_set *s); /* the first part's header */
const struct gguf_entry *gguf_set_find(const struct gguf_set *s, const char *name); /* or NULL */
/* The tensor's bytes, mapped. */
const uint8_t *gguf_set_data(const struct gguf_set *s, const struct gguf_entry *e);

/* Whether `path` looks like what gguf_set_open is for: a file called *.gguf, or a folder with such files and no
 * config.json. Reads no file. */
bool gguf_set_is(const char *path);

#endif
