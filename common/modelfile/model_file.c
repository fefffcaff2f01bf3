#include "common/modelfile/model_file.h"

#include <assert.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/modelfile/gguf_config.h"
#include "common/modelfile/gguf_set.h"
#include "common/modelfile/gguf_used.h"
#include "common/modelfile/shards.h"
#include "common/modelfile/weights.h"

#define N_EXPERT_ROLES (W_EXPERT_DOWN_BIAS - W_EXPERT_GATE + 1)

struct model_file {
    char *dir;
    struct hparams hp;
    enum weight_files files;
    struct shards shards; /* FILES_HF */
    struct gguf_set gguf; /* FILES_GGUF */
    uint32_t n_tensors;
    struct tensor *tensors; /* [n_tensors], by name */
    /* By role; one that the model does not have, or that is not here, has no name. */
    struct tensor *model_wide; /* [W_N_ROLES] */
    struct tensor *per_layer;  /* [n_layers][W_N_ROLES] */
    struct tensor *per_expert; /* [n_layers][n_experts][N_EXPERT_ROLES] */
};

static struct tensor *slot(const struct model_file *f, enum weight_role role, uint32_t layer,
                           uint32_t expert)
{
    switch (weight_scope(role)) {
    case SCOPE_MODEL:
        return &f->model_wide[role];
    case SCOPE_LAYER:
        return &f->per_layer[(size_t)layer * W_N_ROLES + role];
    case SCOPE_EXPERT:
        break;
    }
    size_t which = (size_t)layer * f->hp.n_experts + expert;
    return &f->per_expert[which * N_EXPERT_ROLES + (size_t)(role - W_EXPERT_GATE)];
}

/* ---- what the family needs --------------------------------------------------------------------- */

static int is_named(const void *name, const void *tensor)
{
    return strcmp(name, ((const struct tensor *)tensor)->name);
}

static void shape_text(uint32_t n_dims, const uint64_t *dims, char *out, size_t cap)
{
    size_t n = 0;
    for (uint32_t i = 0; i < n_dims && n < cap; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s%" PRIu64, i == 0 ? "[" : ", ", dims[i]);
    if (n < cap) snprintf(out + n, cap - n, "%s", n_dims == 0 ? "[]" : "]");
}

static const struct tensor *named(const struct model_file *f, const char *name)
{
    if (f->n_tensors == 0) return NULL;
    return bsearch(name, f->tensors, f->n_tensors, sizeof *f->tensors, is_named);
}

static enum err_code check_shape(const struct tensor *t, const char *what, uint32_t n_dims,
                                 const uint64_t *dims, struct err *why)
{
    bool same = t->n_dims == n_dims;
    for (uint32_t i = 0; same && i < n_dims; i++)
        same = t->dims[i] == dims[i];
    /* A vector may be a matrix of one row. */
    if (n_dims == 1 && t->n_dims == 2 && t->dims[0] == 1) same = t->dims[1] == dims[0];
    if (same) return ERR_OK;
    char has[128], wants[128];
    shape_text(t->n_dims, t->dims, has, sizeof has);
    shape_text(n_dims, dims, wants, sizeof wants);
    return err_set(why, ERR_CORRUPT, "tensor '%s' (%s) has shape %s, config.json makes it %s",
                   t->name, what, has, wants);
}

/* Scales in a tensor of their own: their name, shape and type. */
static enum err_code find_scales(const struct model_file *f, const struct tensor *of,
                                 const char *name, uint32_t n_dims, const uint64_t *dims,
                                 const char *dtype, const struct tensor **out, struct err *why)
{
    const struct tensor *t = named(f, name);
    if (t == NULL)
        return err_set(why, ERR_CORRUPT, "tensor '%s', the scales of '%s', is missing", name,
                       of->name);
    const char *has = model_file_dtype_text(f, (uint32_t)(t - f->tensors));
    if (strcmp(has, dtype) != 0)
        return err_set(why, ERR_UNSUPPORTED, "tensor '%s' has dtype %s, scales must have %s", name,
                       has, dtype);
    *out = t;
    return check_shape(t, "scales", n_dims, dims, why);
}

/* FP8: "<name>_scale_inv", a scale for each F8_BLOCK rows and columns begun. */
static enum err_code find_f8_scales(const struct model_file *f, const struct tensor *t,
                                    struct tensor *view, struct err *why)
{
    char name[WEIGHT_NAME_MAX + 16];
    const struct tensor *scales;
    uint64_t dims[2] = {(t->dims[0] + F8_BLOCK - 1) / F8_BLOCK,
                        (t->dims[1] + F8_BLOCK - 1) / F8_BLOCK};
    if (t->n_dims != 2)
        return err_set(why, ERR_UNSUPPORTED, "tensor '%s': fp8 in %u dimensions is not supported",
                       t->name, t->n_dims);
    snprintf(name, sizeof name, "%s_scale_inv", t->name);
    enum err_code rc = find_scales(f, t, name, 2, dims, "F32", &scales, why);
    if (rc != ERR_OK) return rc;
    view->scales = scales->data;
    view->scales_stride = dims[1] * sizeof(float);
    return ERR_OK;
}

/* The part of tensor `t` that a place describes; `n_dims`, `dims`: the role's own shape. The shape was checked. */
static enum err_code cut_view(const struct model_file *f, const struct weight_place *place,
                              const struct tensor *t, uint32_t layer, uint32_t expert,
                              uint32_t n_dims, const uint64_t *dims, struct tensor *view,
                              struct err *why)
{
    *view = *t;
    view->n_dims = n_dims;
    memcpy(view->dims, dims, n_dims * sizeof *dims);
    const uint64_t rows = n_dims == 1 ? 1 : tensor_n_elements(view) / dims[n_dims - 1];
    const uint64_t columns = dims[n_dims - 1], outs = n_dims == 1 ? columns : rows;
    const uint64_t whole = place->part == PART_ALL ? outs : 2 * outs; /* features of the tensor */
    const uint64_t first = place->part == PART_HIGH ? outs : place->part == PART_ODD;
    const uint64_t step = place->part == PART_EVEN || place->part == PART_ODD ? 2 : 1;
    const uint64_t slab = place->stacked ? expert : 0;
    if (place->scales != NULL) {
        char name[WEIGHT_NAME_MAX];
        weight_name(place->scales, layer, expert, name);
        const struct tensor *scales;
        enum err_code rc = find_scales(f, t, name, t->n_dims - 1, t->dims, "U8", &scales, why);
        if (rc != ERR_OK) return rc;
        const uint64_t blocks = columns / 32;
        view->dtype = DTYPE_MXFP4;
        view->data += (slab * whole + first) * blocks * 16;
        view->row_stride = step * blocks * 16;
        view->bytes = (rows - 1) * view->row_stride + blocks * 16;
        view->scales = scales->data + (slab * whole + first) * blocks;
        view->scales_stride = step * blocks;
    } else if (place->transposed || (n_dims == 1 && step > 1)) {
        const uint64_t each = dtype_block_bytes(t->dtype), in = n_dims == 1 ? 1 : columns;
        if (dtype_block(t->dtype) != 1 || t->dtype == DTYPE_F8_E4M3)
            return err_set(why, ERR_UNSUPPORTED,
                           "tensor '%s': %s of a transposed matrix is not supported", t->name,
                           dtype_name(t->dtype));
        view->data += (slab * whole * in + first) * each;
        view->row_stride = step * each;
        view->col_stride = (n_dims == 1 ? step : whole) * each;
        view->bytes = (rows - 1) * view->row_stride + (columns - 1) * view->col_stride + each;
    } else if (n_dims == 1) {
        const uint64_t each = dtype_block_bytes(t->dtype);
        view->data += (slab * whole + first) * each;
        view->bytes = columns * each;
    } else {
        if (columns % dtype_block(t->dtype) != 0)
            return err_set(why, ERR_CORRUPT,
                           "tensor '%s': rows of %" PRIu64
                           " are not a multiple of %s's block of %u",
                           t->name, columns, dtype_name(t->dtype), dtype_block(t->dtype));
        const uint64_t each = columns / dtype_block(t->dtype) * dtype_block_bytes(t->dtype);
        view->data += (slab * whole + first) * each;
        view->row_stride = step * each;
        view->bytes = (rows - 1) * view->row_stride + each;
        if (t->dtype == DTYPE_F8_E4M3) {
            enum err_code rc = find_f8_scales(f, t, view, why);
            if (rc != ERR_OK) return rc;
        }
    }
    view->file_off += (uint64_t)(view->data - t->data);
    return ERR_OK;
}

/* Some files have the expansion of latent keys and values in one tensor, some in two. */
static bool is_elsewhere(const struct model_file *f, enum weight_role role, uint32_t layer)
{
    switch (role) {
    case W_KV_B: /* looked for before the two */
        return f->files == FILES_GGUF;
    case W_K_B:
    case W_V_B:
        return slot(f, W_KV_B, layer, 0)->name != NULL;
    default:
        return false;
    }
}

static enum err_code need(struct model_file *f, enum weight_role role, uint32_t layer,
                          uint32_t expert, struct err *why)
{
    uint32_t n_dims;
    uint64_t dims[TENSOR_MAX_DIMS], file_dims[TENSOR_MAX_DIMS];
    if (!weight_shape(&f->hp, role, layer, &n_dims, dims)) return ERR_OK;
    struct weight_place place;
    char name[WEIGHT_NAME_MAX] = "";
    const struct tensor *t = NULL;
    for (uint32_t i = 0; t == NULL && weight_place(&f->hp, f->files, role, layer, i, &place); i++) {
        char tried[WEIGHT_NAME_MAX];
        weight_name(place.name, weight_place_layer(&f->hp, &place, layer), expert, tried);
        t = named(f, tried);
        if (i == 0 || t != NULL) memcpy(name, tried, sizeof name);
    }
    if (t == NULL && (f->shards.n_absent > 0 || is_elsewhere(f, role, layer))) return ERR_OK;
    if (t == NULL)
        return err_set(why, ERR_CORRUPT, "tensor '%s' (%s) is missing", name,
                       weight_role_name(role));
    uint32_t file_n_dims = n_dims;
    memcpy(file_dims, dims, sizeof dims);
    weight_place_shape(&place, f->hp.n_experts, &file_n_dims, file_dims);
    enum err_code rc = check_shape(t, weight_role_name(role), file_n_dims, file_dims, why);
    if (rc != ERR_OK) return rc;
    if (t->dtype == DTYPE_N && place.scales == NULL)
        return err_set(
            why, ERR_UNSUPPORTED, "tensor '%s' (%s) has dtype %s, which is not supported", name,
            weight_role_name(role), model_file_dtype_text(f, (uint32_t)(t - f->tensors)));
    if (n_dims == 1 && (dtype_block(t->dtype) != 1 || t->dtype == DTYPE_F8_E4M3))
        return err_set(why, ERR_UNSUPPORTED, "tensor '%s' (%s) has dtype %s, a vector must not",
                       name, weight_role_name(role), dtype_name(t->dtype));
    return cut_view(f, &place, t, layer, expert, n_dims, dims, slot(f, role, layer, expert), why);
}

static enum err_code need_all(struct model_file *f, struct err *why)
{
    const struct hparams *hp = &f->hp;
    f->model_wide = mem_zalloc_array(W_N_ROLES, sizeof *f->model_wide);
    f->per_layer = mem_zalloc_array((size_t)hp->n_layers * W_N_ROLES, sizeof *f->per_layer);
    if (hp->n_experts > 0)
        f->per_expert = mem_zalloc_array((size_t)hp->n_layers * hp->n_experts * N_EXPERT_ROLES,
                                         sizeof *f->per_expert);
    if (f->model_wide == NULL || f->per_layer == NULL ||
        (f->per_expert == NULL && hp->n_experts > 0))
        return err_nomem(why, "the table of weights");
    for (uint32_t r = 0; r < W_N_ROLES; r++) {
        enum weight_role role = (enum weight_role)r;
        enum weight_scope scope = weight_scope(role);
        uint32_t layers = scope == SCOPE_MODEL ? 1 : hp->n_layers;
        uint32_t experts = scope == SCOPE_EXPERT ? hp->n_experts : 1;
        for (uint32_t l = 0; l < layers; l++)
            for (uint32_t e = 0; e < experts; e++) {
                enum err_code rc = need(f, role, l, e, why);
                if (rc != ERR_OK) return rc;
            }
    }
    if (hp->tied_head) f->model_wide[W_HEAD] = f->model_wide[W_EMBED];
    return ERR_OK;
}

static void list_shards(struct model_file *f)
{
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        const struct shard_entry *e = &f->shards.entries[i];
        const uint8_t *base = mapped_file_data(f->shards.items[e->shard].file);
        struct tensor *t = &f->tensors[i];
        *t = (struct tensor){.name = e->tensor->name,
                             .dtype = e->tensor->dtype,
                             .n_dims = e->tensor->n_dims,
                             .data = base + e->tensor->off,
                             .bytes = e->tensor->bytes,
                             .file = e->shard,
                             .file_off = e->tensor->off};
        memcpy(t->dims, e->tensor->dims, sizeof t->dims);
    }
}

/* Dimensions are outermost first here, innermost first there. */
static void list_gguf(struct model_file *f)
{
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        const struct gguf_entry *e = &f->gguf.entries[i];
        struct tensor *t = &f->tensors[i];
        *t = (struct tensor){.name = e->tensor->name,
                             .dtype = e->tensor->dtype,
                             .n_dims = e->tensor->n_dims,
                             .data = gguf_set_data(&f->gguf, e),
                             .bytes = e->tensor->bytes,
                             .file = e->part,
                             .file_off = e->tensor->off};
        for (uint32_t d = 0; d < t->n_dims; d++)
            t->dims[d] = e->tensor->dims[t->n_dims - 1 - d];
    }
}

static enum err_code list_tensors(struct model_file *f, struct err *why)
{
    f->n_tensors = f->files == FILES_GGUF ? f->gguf.n_entries : f->shards.n_entries;
    f->tensors = mem_zalloc_array(f->n_tensors, sizeof *f->tensors);
    if (f->tensors == NULL) return err_nomem(why, "the tensor table");
    if (f->files == FILES_GGUF)
        list_gguf(f);
    else
        list_shards(f);
    return ERR_OK;
}

/* ---- finding the folder ------------------------------------------------------------------------ */

static bool exists(const char *dir, const char *name)
{
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/%s", dir, name);
    return n > 0 && (size_t)n < sizeof path && access(path, F_OK) == 0;
}

/* A download cache: refs/main holds the name of a folder in snapshots/. */
static enum err_code follow_ref(const char *dir, char **out, struct err *why)
{
    char *ref = shards_join(dir, "refs/main");
    if (ref == NULL) return err_nomem(why, "a path");
    char *commit;
    size_t n;
    enum err_code rc = file_read(ref, 128, &commit, &n, why);
    mem_free(ref);
    if (rc != ERR_OK) return rc;
    while (n > 0 && (commit[n - 1] == '\n' || commit[n - 1] == '\r' || commit[n - 1] == ' '))
        commit[--n] = '\0';
    char snapshot[160];
    if (n == 0 || strspn(commit, "0123456789abcdef") != n)
        rc = err_set(why, ERR_CORRUPT, "refs/main does not hold a commit");
    else {
        snprintf(snapshot, sizeof snapshot, "snapshots/%s", commit);
        *out = shards_join(dir, snapshot);
        if (*out == NULL) rc = err_nomem(why, "a path");
    }
    mem_free(commit);
    return rc;
}

/* The folder with config.json, or the one with the GGUF file, or that file. */
static enum err_code find_model(const char *path, char **out, struct err *why)
{
    struct stat st;
    if (stat(path, &st) != 0) return err_set(why, ERR_NOT_FOUND, "no such file or folder");
    if (S_ISDIR(st.st_mode) && !exists(path, "config.json") && exists(path, "refs/main"))
        return follow_ref(path, out, why);
    if (!S_ISDIR(st.st_mode) && !gguf_set_is(path))
        return err_set(
            why, ERR_INVALID,
            "is neither a folder (give the one that holds config.json) nor a .gguf file");
    *out = mem_strdup(path);
    return *out != NULL ? ERR_OK : err_nomem(why, "a path");
}

static enum err_code open_shards(struct model_file *f, bool in_part, struct err *why)
{
    enum err_code rc = hparams_read(f->dir, &f->hp, why);
    return rc == ERR_OK ? shards_open(f->dir, in_part, &f->shards, why) : rc;
}

/* All parts must be here: only they say what tensors the model has. */
static enum err_code open_gguf(struct model_file *f, struct err *why)
{
    json_t *config;
    f->files = FILES_GGUF;
    enum err_code rc = gguf_set_open(f->dir, false, &f->gguf, why);
    if (rc == ERR_OK) rc = gguf_config(&f->gguf, &config, why);
    if (rc != ERR_OK) return rc;
    rc = hparams_read_object(config, "metadata", &f->hp, why);
    json_decref(config);
    if (rc != ERR_OK) return rc;
    if (gguf_config_permuted(&f->gguf)) f->hp.rope_interleaved = true;
    return gguf_check_used(&f->gguf, &f->hp, why);
}

static enum err_code open_file(const char *path, bool in_part, struct model_file **out,
                               struct err *why)
{
    enum err_code rc;
    struct model_file *f = mem_zalloc(sizeof *f);
    if (f == NULL) {
        rc = err_nomem(why, "a model file");
        goto fail;
    }
    rc = find_model(path, &f->dir, why);
    if (rc == ERR_OK) rc = gguf_set_is(f->dir) ? open_gguf(f, why) : open_shards(f, in_part, why);
    if (rc == ERR_OK) rc = list_tensors(f, why);
    if (rc == ERR_OK) rc = need_all(f, why);
    if (rc != ERR_OK) goto fail;
    *out = f;
    return ERR_OK;
fail:
    model_file_close(f);
    const bool named = why != NULL && strncmp(why->text, path, strlen(path)) == 0;
    return named ? rc : err_wrap(why, rc, "%s", path);
}

enum err_code model_file_open(const char *path, struct model_file **out, struct err *why)
{
    return open_file(path, false, out, why);
}

enum err_code model_file_open_part(const char *path, struct model_file **out, struct err *why)
{
    return open_file(path, true, out, why);
}

void model_file_close(struct model_file *f)
{
    if (f == NULL) return;
    mem_free(f->per_expert);
    mem_free(f->per_layer);
    mem_free(f->model_wide);
    mem_free(f->tensors);
    shards_close(&f->shards);
    gguf_set_close(&f->gguf);
    mem_free(f->dir);
    mem_free(f);
}

/* ---- reading ----------------------------------------------------------------------------------- */

const struct hparams *model_file_hparams(const struct model_file *f)
{
    return &f->hp;
}

const char *model_file_dir(const struct model_file *f)
{
    return f->dir;
}

const struct tensor *model_file_find(const struct model_file *f, enum weight_role role,
                                     uint32_t layer, uint32_t expert)
{
    enum weight_scope scope = weight_scope(role);
    assert(role < W_N_ROLES && (scope == SCOPE_MODEL || layer < f->hp.n_layers));
    assert(scope != SCOPE_EXPERT || f->hp.n_experts == 0 || expert < f->hp.n_experts);
    if (scope == SCOPE_EXPERT && f->hp.n_experts == 0) return NULL;
    const struct tensor *t = slot(f, role, layer, expert);
    return t->name != NULL ? t : NULL;
}

const struct gguf *model_file_gguf(const struct model_file *f)
{
    return f->files == FILES_GGUF ? gguf_set_meta(&f->gguf) : NULL;
}

/* ---- the files ---------------------------------------------------------------------------------- */

static struct mapped_file *mapped(const struct model_file *f, uint32_t file)
{
    assert(file < model_file_n_paths(f));
    return f->files == FILES_GGUF ? f->gguf.parts[file].file : f->shards.items[file].file;
}

uint32_t model_file_n_paths(const struct model_file *f)
{
    return f->files == FILES_GGUF ? f->gguf.n_parts : f->shards.n;
}

const char *model_file_path(const struct model_file *f, uint32_t file)
{
    assert(file < model_file_n_paths(f));
    return f->files == FILES_GGUF ? f->gguf.parts[file].path : f->shards.items[file].path;
}

uint64_t model_file_size(const struct model_file *f, uint32_t file)
{
    const struct mapped_file *m = mapped(f, file);
    return m == NULL ? 0 : mapped_file_size(m);
}

const uint64_t *model_file_index_hash(const struct model_file *f)
{
    return f->shards.index_path != NULL ? f->shards.index_hash : NULL;
}

const char *model_file_index_path(const struct model_file *f)
{
    return f->shards.index_path;
}

void model_file_drop(const struct model_file *f, const struct tensor *t)
{
    mapped_file_drop(mapped(f, t->file), (size_t)t->file_off, (size_t)t->bytes);
}

uint32_t model_file_n_tensors(const struct model_file *f)
{
    return f->n_tensors;
}

const struct tensor *model_file_tensor(const struct model_file *f, uint32_t i)
{
    assert(i < f->n_tensors);
    return &f->tensors[i];
}

const char *model_file_dtype_text(const struct model_file *f, uint32_t i)
{
    assert(i < f->n_tensors);
    return f->files == FILES_GGUF ? f->gguf.entries[i].tensor->type_text
                                  : f->shards.entries[i].tensor->dtype_text;
}
