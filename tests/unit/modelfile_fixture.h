/* modelfile_fixture.h - model folders made up in a scratch directory. Test code: aborts on any trouble. */
#ifndef MOESAIC_TESTS_MODELFILE_FIXTURE_H
#define MOESAIC_TESTS_MODELFILE_FIXTURE_H

#include <dirent.h>
#include <ftw.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MODELS TEST_DATA "/models/"

struct scratch {
    char dir[256];
};

static inline const char *scratch_path(const struct scratch *s, const char *name)
{
    static char path[1024]; /* valid until the next call */
    snprintf(path, sizeof path, "%s/%s", s->dir, name);
    return path;
}

static inline struct scratch scratch_open(void)
{
    struct scratch s;
    const char *tmp = getenv("TMPDIR");
    snprintf(s.dir, sizeof s.dir, "%s/moesaic-test-XXXXXX", tmp != NULL ? tmp : "/tmp");
    if (mkdtemp(s.dir) == NULL) abort();
    return s;
}

static inline int scratch_remove_one(const char *path, const struct stat *st, int type,
                                     struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

static inline void scratch_close(struct scratch *s)
{
    nftw(s->dir, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void scratch_write(const struct scratch *s, const char *name, const void *bytes,
                                 size_t n)
{
    FILE *f = fopen(scratch_path(s, name), "wb");
    if (f == NULL || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) abort();
}

/* Links to all files of a model folder that are not there yet. */
static inline void scratch_link_model(const struct scratch *s, const char *model)
{
    DIR *d = opendir(model);
    if (d == NULL) abort();
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char from[1024];
        snprintf(from, sizeof from, "%s/%s", model, e->d_name);
        if (e->d_name[0] != '.' && access(scratch_path(s, e->d_name), F_OK) != 0 &&
            symlink(from, scratch_path(s, e->d_name)) != 0)
            abort();
    }
    closedir(d);
}

static inline json_t *load_json(const char *dir, const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    json_t *v = json_load_file(path, 0, NULL);
    if (v == NULL) abort();
    return v;
}

static inline void scratch_write_json(const struct scratch *s, const char *name, const json_t *v)
{
    if (json_dump_file(v, scratch_path(s, name), 0) != 0) abort();
}

/* A model's config.json with the members of `changes` (JSON text) set; a member "-key" takes key away. */
static inline void scratch_write_config(const struct scratch *s, const char *model,
                                        const char *changes)
{
    json_t *config = load_json(model, "config.json");
    json_t *v = json_loads(changes, 0, NULL);
    if (v == NULL) abort();
    const char *key;
    json_t *value;
    json_object_foreach(v, key, value)
    {
        if (key[0] == '-')
            json_object_del(config, key + 1);
        else
            json_object_set(config, key, value);
    }
    scratch_write_json(s, "config.json", config);
    json_decref(v);
    json_decref(config);
}

static inline unsigned char *read_bytes(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL) abort();
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    unsigned char *p = malloc(*n);
    if (p == NULL || fread(p, 1, *n, f) != *n) abort();
    fclose(f);
    return p;
}

#endif
