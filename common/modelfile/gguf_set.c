#include "common/modelfile/gguf_set.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/modelfile/shards.h"

#define SUFFIX       ".gguf"
#define SPLIT_DIGITS 5u
#define SPLIT_LEN    (sizeof "-00001-of-00001.gguf" - 1)

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), n_end = strlen(end);
    return n > n_end && strcmp(s + n - n_end, end) == 0;
}

static bool take_number(const char *s, uint32_t *out)
{
    *out = 0;
    for (uint32_t i = 0; i < SPLIT_DIGITS; i++) {
        if (s[i] < '0' || s[i] > '9') return false;
        *out = *out * 10 + (uint32_t)(s[i] - '0');
    }
    return true;
}

/* Does the path end in "-00001-of-00003.gguf"? Then which part of how many it is, and where the prefix ends; else these
 * are of no use. */
static bool parse_split(const char *path, size_t *prefix, uint32_t *part, uint32_t *count)
{
    size_t n = strlen(path);
    if (n <= SPLIT_LEN || !ends_with(path, SUFFIX)) return false;
    const char *s = path + n - SPLIT_LEN;
    *prefix = n - SPLIT_LEN;
    return s[0] == '-' && take_number(s + 1, part) && memcmp(s + 6, "-of-", 4) == 0 &&
           take_number(s + 10, count) && *part >= 1 && *part <= *count;
}

/* ---- folders ------------------------------------------------------------------------------------ */

static bool is_model_name(const char *name)
{
    return ends_with(name, SUFFIX) && name[0] != '.' && strncmp(name, "mmproj", 6) != 0;
}

/* Whether both are files of one model: parts of one. */
static bool same_model(const char *a, const char *b)
{
    size_t n_a, n_b;
    uint32_t part, count_a, count_b;
    return parse_split(a, &n_a, &part, &count_a) && parse_split(b, &n_b, &part, &count_b) &&
           n_a == n_b && count_a == count_b && memcmp(a, b, n_a) == 0;
}

/* The one model's file in a folder (any part of it). */
static enum err_code find_in_folder(const char *dir, char **out, struct err *why)
{
    DIR *d = opendir(dir);
    if (d == NULL) return err_set(why, ERR_IO, "%s: %s", dir, strerror(errno));
    char *found = NULL;
    enum err_code rc = ERR_OK;
    for (struct dirent *e; rc == ERR_OK && (e = readdir(d)) != NULL;) {
        if (!is_model_name(e->d_name)) continue;
        if (found == NULL) {
            found = mem_strdup(e->d_name);
            if (found == NULL) rc = err_nomem(why, "a file name");
        } else if (!same_model(found, e->d_name)) {
            bool swap = strcmp(found, e->d_name) > 0; /* the same message whatever the order */
            rc = err_set(why, ERR_INVALID,
                         "%s: several models are here, '%.200s' and '%.200s' among them: name one",
                         dir, swap ? e->d_name : found, swap ? found : e->d_name);
        }
    }
    closedir(d);
    if (rc == ERR_OK && found == NULL)
        rc = err_set(why, ERR_NOT_FOUND, "%s: no " SUFFIX " file is here", dir);
    if (rc == ERR_OK) {
        *out = shards_join(dir, found);
        if (*out == NULL) rc = err_nomem(why, "a path");
    }
    mem_free(found);
    return rc;
}

bool gguf_set_is(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) return ends_with(path, SUFFIX);
    DIR *d = opendir(path);
    if (d == NULL) return false;
    bool has_gguf = false, has_config = false;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        has_gguf = has_gguf || is_model_name(e->d_name);
        has_config = has_config || strcmp(e->d_name, "config.json") == 0;
    }
    closedir(d);
    return has_gguf && !has_config;
}

/* ---- parts -------------------------------------------------------------------------------------- */

/* What the file says of itself must be what its name says. */
static enum err_code check_part(const struct gguf_set *s, uint32_t part, struct err *why)
{
    const struct gguf *g = &s->parts[part].head;
    uint32_t no = 0, count = s->n_parts > 1 ? 0 : 1;
    enum err_code rc = gguf_u32(g, "split.count", &count, why);
    if (rc != ERR_OK && (rc != ERR_NOT_FOUND || s->n_parts > 1)) return rc;
    if (count == 0 && s->n_parts == 1) count = 1; /* some writers say so of a whole file */
    if (count != s->n_parts)
        return err_set(why, ERR_CORRUPT,
                       "'split.count' is %" PRIu32 ", but by its name it is of %" PRIu32
                       " (parts are called PREFIX-00001-of-00002.gguf)",
                       count, s->n_parts);
    rc = gguf_u32(g, "split.no", &no, why);
    if (rc != ERR_OK && (rc != ERR_NOT_FOUND || s->n_parts > 1)) return rc;
    if (no != part)
        return err_set(why, ERR_CORRUPT,
                       "'split.no' is %" PRIu32 ", but by its name it is %" PRIu32, no, part);
    return ERR_OK;
}

static enum err_code open_part(struct gguf_set *s, uint32_t part, struct err *why)
{
    struct gguf_part *p = &s->parts[part];
    enum err_code rc = mapped_file_open(p->path, &p->file, why);
    if (rc != ERR_OK) return rc; /* names the path */
    rc = gguf_parse(mapped_file_data(p->file), mapped_file_size(p->file), &p->head, why);
    if (rc == ERR_OK) rc = check_part(s, part, why);
    if (rc == ERR_NOT_FOUND) rc = ERR_CORRUPT; /* a key */
    return rc == ERR_OK ? rc : err_wrap(why, rc, "%s", p->path);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct gguf_entry *)a)->tensor->name,
                  ((const struct gguf_entry *)b)->tensor->name);
}

static enum err_code list_tensors(struct gguf_set *s, struct err *why)
{
    size_t n = 0;
    for (uint32_t p = 0; p < s->n_parts; p++)
        n += s->parts[p].head.n_tensors;
    if (n > LIMIT_GGUF_TENSORS)
        return err_set(why, ERR_CORRUPT, "%s: %zu tensors in all parts, at most %u are allowed",
                       s->parts[0].path, n, LIMIT_GGUF_TENSORS);
    uint32_t total = (uint32_t)n;
    enum err_code rc = gguf_u32(&s->parts[0].head, "split.tensors.count", &total, why);
    if (rc != ERR_OK && rc != ERR_NOT_FOUND) return err_wrap(why, rc, "%s", s->parts[0].path);
    if (s->n_parts > 1 && s->n_absent == 0 && total != n)
        return err_set(why, ERR_CORRUPT,
                       "%s: 'split.tensors.count' is %" PRIu32 ", the parts have %zu together",
                       s->parts[0].path, total, n);
    s->entries = mem_zalloc_array(n, sizeof *s->entries);
    if (s->entries == NULL) return err_nomem(why, "the table of tensors");
    for (uint32_t p = 0; p < s->n_parts; p++)
        for (uint32_t t = 0; t < s->parts[p].head.n_tensors; t++)
            s->entries[s->n_entries++] =
                (struct gguf_entry){.tensor = &s->parts[p].head.tensors[t], .part = p};
    qsort(s->entries, s->n_entries, sizeof *s->entries, by_name);
    for (uint32_t i = 1; i < s->n_entries; i++)
        if (by_name(&s->entries[i - 1], &s->entries[i]) == 0)
            return err_set(why, ERR_CORRUPT, "tensor '%s' is in both %s and %s",
                           s->entries[i].tensor->name, s->parts[s->entries[i - 1].part].path,
                           s->parts[s->entries[i].part].path);
    return ERR_OK;
}

static enum err_code open_file(const char *path, bool in_part, struct gguf_set *s, struct err *why)
{
    size_t prefix;
    uint32_t part, count;
    bool split = parse_split(path, &prefix, &part, &count);
    if (!split) {
        prefix = strlen(path);
        count = 1;
    }
    if (count > LIMIT_SHARDS)
        return err_set(why, ERR_CORRUPT, "%s: %" PRIu32 " parts, at most %u are allowed", path,
                       count, LIMIT_SHARDS);
    s->parts = mem_zalloc_array(count, sizeof *s->parts);
    if (s->parts == NULL) return err_nomem(why, "the list of parts");
    s->n_parts = count;
    for (uint32_t i = 0; i < count; i++) {
        struct buf name = {0};
        buf_append(&name, path, prefix);
        if (split) buf_printf(&name, "-%05" PRIu32 "-of-%05" PRIu32 SUFFIX, i + 1, count);
        s->parts[i].path = buf_take(&name, NULL);
        if (s->parts[i].path == NULL) return err_nomem(why, "a path");
    }
    for (uint32_t i = 0; i < count; i++) {
        bool may_lack = in_part && i > 0 && access(s->parts[i].path, F_OK) != 0;
        enum err_code rc = may_lack ? ERR_OK : open_part(s, i, why);
        s->n_absent += may_lack;
        if (rc == ERR_NOT_FOUND && count > 1)
            return err_wrap(why, rc, "part %" PRIu32 " of %" PRIu32, i + 1, count);
        if (rc != ERR_OK) return rc;
    }
    return list_tensors(s, why);
}

enum err_code gguf_set_open(const char *path, bool in_part, struct gguf_set *out, struct err *why)
{
    struct gguf_set s = {0};
    struct stat st;
    char *found = NULL;
    *out = s;
    enum err_code rc = ERR_OK;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) rc = find_in_folder(path, &found, why);
    if (rc == ERR_OK) rc = open_file(found != NULL ? found : path, in_part, &s, why);
    mem_free(found);
    if (rc == ERR_OK)
        *out = s;
    else
        gguf_set_close(&s);
    return rc;
}

void gguf_set_close(struct gguf_set *s)
{
    for (uint32_t i = 0; i < s->n_parts; i++) {
        gguf_deinit(&s->parts[i].head);
        mapped_file_close(s->parts[i].file);
        mem_free(s->parts[i].path);
    }
    mem_free(s->parts);
    mem_free(s->entries);
    *s = (struct gguf_set){0};
}

const struct gguf *gguf_set_meta(const struct gguf_set *s)
{
    return &s->parts[0].head;
}

const struct gguf_entry *gguf_set_find(const struct gguf_set *s, const char *name)
{
    uint32_t lo = 0, hi = s->n_entries;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        int order = strcmp(s->entries[mid].tensor->name, name);
        if (order == 0) return &s->entries[mid];
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

const uint8_t *gguf_set_data(const struct gguf_set *s, const struct gguf_entry *e)
{
    return mapped_file_data(s->parts[e->part].file) + e->tensor->off;
}
