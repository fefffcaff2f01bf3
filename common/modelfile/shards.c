#include "common/modelfile/shards.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME  "model.safetensors.index.json"

char *shards_join(const char *dir, const char *name)
{
    size_t a = strlen(dir), b = strlen(name);
    char *p = mem_alloc(a + b + 2);
    if (p == NULL) return NULL;
    memcpy(p, dir, a);
    p[a] = '/';
    memcpy(p + a + 1, name, b + 1);
    return p;
}

static int by_tensor_name(const void *a, const void *b)
{
    return strcmp(((const struct shard_entry *)a)->tensor->name,
                  ((const struct shard_entry *)b)->tensor->name);
}

static int is_named(const void *name, const void *entry)
{
    return strcmp(name, ((const struct shard_entry *)entry)->tensor->name);
}

static enum err_code open_one(struct shard *s, const char *dir, struct err *why)
{
    s->path = shards_join(dir, s->name);
    if (s->path == NULL) return err_nomem(why, "a path");
    enum err_code rc = mapped_file_open(s->path, &s->file, why);
    if (rc == ERR_OK) {
        rc =
            safetensors_parse(mapped_file_data(s->file), mapped_file_size(s->file), &s->table, why);
        if (rc != ERR_OK) rc = err_wrap(why, rc, "%s", s->path);
    }
    return rc;
}

/* A shard's name comes from outside and becomes a path: it must stay in the folder. */
static bool is_plain_name(const json_t *v)
{
    const char *name = json_string_value(v);
    return name != NULL && strlen(name) == json_string_length(v) && name[0] != '\0' &&
           name[0] != '.' && strchr(name, '/') == NULL && strlen(name) < 256;
}

/* Into the sorted list, unless it is there. */
static enum err_code add_shard(struct shards *s, const char *name, struct err *why)
{
    uint32_t lo = 0, hi = s->n;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        int order = strcmp(s->items[mid].name, name);
        if (order == 0) return ERR_OK;
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (s->n == LIMIT_SHARDS) return err_set(why, ERR_CORRUPT, "more than %u shards", LIMIT_SHARDS);
    char *copy = mem_strdup(name);
    if (copy == NULL) return err_nomem(why, "a shard's name");
    memmove(&s->items[lo + 1], &s->items[lo], (s->n - lo) * sizeof *s->items);
    s->items[lo] = (struct shard){.name = copy};
    s->n++;
    return ERR_OK;
}

/* The set of file names in the map, sorted, into s->items. */
static enum err_code list_shards(json_t *map, struct shards *s, struct err *why)
{
    s->items = mem_zalloc_array(LIMIT_SHARDS, sizeof *s->items);
    if (s->items == NULL) return err_nomem(why, "the list of shards");
    const char *last = NULL;
    for (void *it = json_object_iter(map); it != NULL; it = json_object_iter_next(map, it)) {
        const json_t *v = json_object_iter_value(it);
        if (!is_plain_name(v))
            return err_set(why, ERR_CORRUPT,
                           "tensor '%.200s': '%.200s' is not the name of a file in this folder",
                           json_object_iter_key(it),
                           json_is_string(v) ? json_string_value(v) : "(no text)");
        const char *name = json_string_value(v);
        if (last != NULL && strcmp(last, name) == 0) continue; /* nearly always */
        last = name;
        enum err_code rc = add_shard(s, name, why);
        if (rc != ERR_OK) return rc;
    }
    if (s->n == 0) return err_set(why, ERR_CORRUPT, "'weight_map' names no file");
    return ERR_OK;
}

static bool is_absent(const struct shards *s, const char *name)
{
    for (uint32_t i = 0; i < s->n; i++)
        if (s->items[i].file == NULL && strcmp(s->items[i].name, name) == 0) return true;
    return false;
}

/* Every tensor of every file, sorted by name; where files hold the same name, `map` decides (NULL: take all). */
static enum err_code list_tensors(json_t *map, struct shards *s, struct err *why)
{
    size_t n = 0;
    for (uint32_t i = 0; i < s->n; i++)
        n += s->items[i].table.n;
    s->entries = mem_zalloc_array(n, sizeof *s->entries);
    if (s->entries == NULL) return err_nomem(why, "the tensor table");
    for (uint32_t i = 0; i < s->n; i++) {
        for (uint32_t t = 0; t < s->items[i].table.n; t++) {
            const struct safetensors_tensor *tensor = &s->items[i].table.tensors[t];
            const char *wanted =
                map != NULL ? json_string_value(json_object_get(map, tensor->name)) : NULL;
            /* A tensor that the index does not list is not the model's. */
            if (map != NULL && (wanted == NULL || strcmp(wanted, s->items[i].name) != 0)) continue;
            s->entries[s->n_entries++] = (struct shard_entry){.tensor = tensor, .shard = i};
        }
    }
    qsort(s->entries, s->n_entries, sizeof *s->entries, by_tensor_name);
    if (map == NULL || s->n_entries == json_object_size(map)) return ERR_OK;
    for (void *it = json_object_iter(map); it != NULL; it = json_object_iter_next(map, it)) {
        const char *name = json_object_iter_key(it);
        if (s->n_absent > 0 && is_absent(s, json_string_value(json_object_iter_value(it))))
            continue;
        if (s->n_entries == 0 ||
            bsearch(name, s->entries, s->n_entries, sizeof *s->entries, is_named) == NULL)
            return err_set(why, ERR_CORRUPT,
                           "tensor '%.200s' is listed in %s, which does not hold it", name,
                           json_string_value(json_object_iter_value(it)));
    }
    return ERR_OK;
}

static enum err_code open_files(const char *dir, bool in_part, json_t *map, struct shards *s,
                                struct err *why)
{
    for (uint32_t i = 0; i < s->n; i++) {
        enum err_code rc = open_one(&s->items[i], dir, why);
        if (rc == ERR_NOT_FOUND && in_part)
            s->n_absent++;
        else if (rc != ERR_OK)
            return rc;
    }
    if (s->n_absent == s->n)
        return err_set(why, ERR_NOT_FOUND, "none of the %u files it names is here, %s for one",
                       s->n, s->items[0].name);
    return list_tensors(map, s, why);
}

static enum err_code open_indexed(const char *dir, bool in_part, struct shards *s, struct err *why)
{
    json_t *index = NULL;
    char *text;
    size_t n;
    enum err_code rc = file_read(s->index_path, LIMIT_INDEX_JSON_BYTES, &text, &n, why);
    if (rc != ERR_OK) return rc;
    XXH128_hash_t hash = XXH3_128bits(text, n);
    s->index_hash[0] = hash.high64;
    s->index_hash[1] = hash.low64;
    rc = json_parse(text, n, LIMIT_FILE_JSON_DEPTH, &index, why);
    mem_free(text);
    if (rc == ERR_INVALID) rc = ERR_CORRUPT;
    if (rc != ERR_OK) return err_wrap(why, rc, INDEX_NAME);
    json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map)) rc = err_set(why, ERR_CORRUPT, "'weight_map' is not an object");
    if (rc == ERR_OK) rc = list_shards(map, s, why);
    if (rc == ERR_OK) rc = open_files(dir, in_part, map, s, why);
    json_decref(index);
    return rc == ERR_OK ? rc : err_wrap(why, rc, INDEX_NAME);
}

static enum err_code open_single(const char *dir, struct shards *s, struct err *why)
{
    s->items = mem_zalloc(sizeof *s->items);
    if (s->items == NULL) return err_nomem(why, "the list of shards");
    s->n = 1;
    s->items[0].name = mem_strdup(SINGLE_NAME);
    if (s->items[0].name == NULL) return err_nomem(why, "a shard's name");
    return open_files(dir, false, NULL, s, why);
}

static enum err_code open_any(const char *dir, bool in_part, struct shards *s, struct err *why)
{
    char *single = shards_join(dir, SINGLE_NAME);
    s->index_path = shards_join(dir, INDEX_NAME);
    if (single == NULL || s->index_path == NULL) {
        mem_free(single);
        return err_nomem(why, "a path");
    }
    /* The one file goes first, as in the library that writes both. */
    bool has_single = access(single, F_OK) == 0;
    mem_free(single);
    if (!has_single) {
        if (access(s->index_path, F_OK) != 0)
            return err_set(why, ERR_NOT_FOUND,
                           "neither " SINGLE_NAME " nor " INDEX_NAME
                           " is there (other formats must be converted to safetensors)");
        return open_indexed(dir, in_part, s, why);
    }
    mem_free(s->index_path);
    s->index_path = NULL;
    return open_single(dir, s, why);
}

enum err_code shards_open(const char *dir, bool in_part, struct shards *out, struct err *why)
{
    *out = (struct shards){0};
    enum err_code rc = open_any(dir, in_part, out, why);
    if (rc != ERR_OK) shards_close(out);
    return rc;
}

void shards_close(struct shards *s)
{
    for (uint32_t i = 0; i < s->n; i++) {
        safetensors_deinit(&s->items[i].table);
        mapped_file_close(s->items[i].file);
        mem_free(s->items[i].path);
        mem_free(s->items[i].name);
    }
    mem_free(s->items);
    mem_free(s->entries);
    mem_free(s->index_path);
    *s = (struct shards){0};
}
