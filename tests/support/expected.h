/* expected.h - what an official implementation computed: tensors in a safetensors file, with or without an expected.json.
 * Test code: fails by assertion; header only. A test that includes it links: modelfile. */
#ifndef TESTS_SUPPORT_EXPECTED_H
#define TESTS_SUPPORT_EXPECTED_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/modelfile/safetensors.h"

struct expected {
    char *bytes;
    size_t n;
    struct safetensors tensors;
    json_t *json;
};

static inline void expected_open_file(struct expected *x, const char *path)
{
    struct err why = {0};
    *x = (struct expected){0};
    cr_assert_eq(file_read(path, 16u << 20, &x->bytes, &x->n, &why), ERR_OK, "%s", why.text);
    cr_assert_eq(safetensors_parse((const uint8_t *)x->bytes, x->n, &x->tensors, &why), ERR_OK,
                 "%s", why.text);
}

/* A model folder's expected.safetensors and expected.json. */
static inline void expected_open(struct expected *x, const char *dir)
{
    char path[1100];
    struct err why = {0};
    snprintf(path, sizeof path, "%s/expected.safetensors", dir);
    expected_open_file(x, path);
    snprintf(path, sizeof path, "%s/expected.json", dir);
    cr_assert_eq(json_parse_file(path, 4u << 20, 64, &x->json, &why), ERR_OK, "%s", why.text);
}

static inline void expected_close(struct expected *x)
{
    safetensors_deinit(&x->tensors);
    mem_free(x->bytes);
    json_decref(x->json);
}

/* "p0" + ".hidden." + "1"; the values (copied: the file promises no alignment) and the first dimension. NULL if absent. */
static inline void *expected_get(const struct expected *x, const char *prompt, const char *key,
                                 int index, uint64_t dims[2])
{
    char name[128];
    if (index >= 0)
        snprintf(name, sizeof name, "%s.%s.%d", prompt, key, index);
    else
        snprintf(name, sizeof name, "%s.%s", prompt, key);
    for (uint32_t i = 0; i < x->tensors.n; i++) {
        const struct safetensors_tensor *t = &x->tensors.tensors[i];
        if (strcmp(t->name, name) != 0) continue;
        dims[0] = t->dims[0];
        dims[1] = t->n_dims > 1 ? t->dims[1] : 1;
        void *copy = mem_alloc(t->bytes);
        cr_assert(copy);
        memcpy(copy, x->bytes + t->off, t->bytes);
        return copy;
    }
    return NULL;
}

#endif
