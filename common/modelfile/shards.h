/* shards.h - the weight files of a model folder: one model.safetensors, or shards with an index.
 * Immutable after open, any thread. */
#ifndef MOESAIC_MODELFILE_SHARDS_H
#define MOESAIC_MODELFILE_SHARDS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/modelfile/mapped_file.h"
#include "common/modelfile/safetensors.h"

struct shard {
    char *name, *path;
    struct mapped_file *file; /* NULL: not on this machine (opened in part) */
    struct safetensors table;
};

struct shards {
    struct shard *items; /* in order of their names */
    uint32_t n;
    struct shard_entry { /* which tensors are the model's, in order of their names (strcmp) */
        const struct safetensors_tensor *tensor;
        uint32_t shard;
    } * entries;
    uint32_t n_entries;
    char *index_path;       /* NULL for a single file */
    uint64_t index_hash[2]; /* xxh3-128 of the index file's bytes; 0 for a single file */
    uint32_t n_absent;
};

/* Map the files of `dir`, parse their headers and match them with the index. NOT_FOUND names the file that is not
 * there, unless `in_part`: then its tensors are just not known. CORRUPT names shard, tensor and reason. On failure
 * `out` is empty. */
enum err_code shards_open(const char *dir, bool in_part, struct shards *out, struct err *why);
void shards_close(struct shards *s);

/* "DIR/NAME", mem_free; NULL if memory is short. */
char *shards_join(const char *dir, const char *name);

#endif
