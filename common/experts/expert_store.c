#include "common/experts/experts.h"

#include <assert.h>

#include "common/base/mem.h"
#include "common/experts/expert_internal.h"
#include "common/experts/matrix.h"

static bool same_geometry(const struct packed *a, const struct packed *b)
{
    return a->format == b->format && a->input == b->input && a->n == b->n && a->k == b->k;
}

/* All experts must take the same rows and give the same results: one geometry per role. */
static enum err_code check_role(const struct expert_store *s, enum weight_role role,
                                struct packed *out, struct err *why)
{
    const struct hparams *hp = model_file_hparams(s->file);
    const struct tensor *first = NULL;
    for (uint32_t layer = 0; layer < s->n_layers; layer++) {
        for (uint32_t e = 0; hp->is_moe[layer] && e < s->n_experts; e++) {
            const struct tensor *t = model_file_find(s->file, role, layer, e);
            struct packed shape;
            if (t == NULL) continue; /* in a shard that is not on this machine */
            enum err_code rc = matrix_shape(t, role, s->quantize, &shape, why);
            if (rc != ERR_OK) return rc;
            if (first == NULL) {
                first = t;
                *out = shape;
            } else if (!same_geometry(&shape, out)) {
                return err_set(why, ERR_UNSUPPORTED,
                               "tensor '%s' is %s, but '%s' is %s: experts must agree", t->name,
                               dtype_name(t->dtype), first->name, dtype_name(first->dtype));
            }
        }
    }
    if (first == NULL)
        return err_set(why, ERR_NOT_FOUND, "none of the files that are here holds an expert");
    return ERR_OK;
}

static enum err_code measure(struct expert_store *s, struct err *why)
{
    enum err_code rc = check_role(s, W_EXPERT_GATE, &s->gate, why);
    if (rc == ERR_OK) rc = check_role(s, W_EXPERT_UP, &s->up, why);
    if (rc == ERR_OK) rc = check_role(s, W_EXPERT_DOWN, &s->down, why);
    if (rc != ERR_OK) return rc;
    if (s->gate.input != s->up.input)
        return err_set(why, ERR_UNSUPPORTED,
                       "gate and up weights of experts are of types that take different rows");
    s->reply_bf16 = s->down.input != ROW_F32;
    s->up_off = packed_bytes(&s->gate);
    s->down_off = s->up_off + packed_bytes(&s->up);
    s->region_bytes = s->down_off + packed_bytes(&s->down);
    return ERR_OK;
}

enum err_code expert_store_open(const struct model_file *file, const char *quantize,
                                const struct kernels *k, struct expert_store **out, struct err *why)
{
    struct expert_store *s = mem_zalloc(sizeof *s);
    if (s == NULL) return err_nomem(why, "expert store");
    const struct hparams *hp = model_file_hparams(file);
    s->file = file;
    s->k = k;
    s->n_layers = hp->n_layers;
    s->n_experts = hp->n_experts;
    bool any = false;
    for (uint32_t layer = 0; layer < hp->n_layers; layer++)
        any |= hp->is_moe[layer];
    if (!any) s->n_experts = 0;

    enum err_code rc = matrix_quantize_parse(quantize, &s->quantize, why);
    if (rc == ERR_OK && s->n_experts > 0) rc = measure(s, why);
    if (rc == ERR_OK && s->n_experts > 0) {
        s->experts = mem_zalloc_array((size_t)s->n_layers * s->n_experts, sizeof *s->experts);
        if (s->experts == NULL) rc = err_nomem(why, "expert table");
    }
    if (rc != ERR_OK) {
        expert_store_close(s);
        return err_wrap(why, rc, "open experts of %s", model_file_dir(file));
    }
    *out = s;
    return ERR_OK;
}

void expert_store_close(struct expert_store *s)
{
    if (s == NULL) return;
    for (size_t i = 0; s->experts != NULL && i < (size_t)s->n_layers * s->n_experts; i++)
        mem_unmap(s->experts[i].region, s->region_bytes);
    mem_free(s->experts);
    mem_free(s->scratch.data);
    mem_free(s->scratch.products);
    mem_free(s->scratch.pieces);
    mem_free(s);
}

static struct packed placed(const struct packed *shape, uint8_t *at)
{
    struct packed w = *shape;
    w.data = at;
    return w;
}

enum err_code expert_store_load(struct expert_store *s, uint32_t layer, uint32_t expert,
                                struct workers *w, struct err *why)
{
    const struct hparams *hp = model_file_hparams(s->file);
    if (layer >= s->n_layers || expert >= s->n_experts || !hp->is_moe[layer])
        return err_set(why, ERR_NOT_FOUND,
                       "the model has no expert %u in layer %u (%u layers, %u experts)", expert,
                       layer, s->n_layers, s->n_experts);
    struct expert *e = expert_at(s, layer, expert);
    if (e->region != NULL) {
        e->refs++;
        return ERR_OK;
    }
    for (int role = W_EXPERT_GATE; role <= W_EXPERT_DOWN; role++)
        if (model_file_find(s->file, (enum weight_role)role, layer, expert) == NULL)
            return err_set(
                why, ERR_NOT_FOUND,
                "the file with expert %u of layer %u is not on this machine; `moesaic inspect MODEL "
                "--experts %u:%u --files`, where the whole model is, names it",
                expert, layer, layer, expert);
    uint8_t *region = mem_map(s->region_bytes);
    if (region == NULL)
        return err_set(why, ERR_EXHAUSTED, "no memory for expert %u of layer %u (%zu bytes)",
                       expert, layer, s->region_bytes);
    *e = (struct expert){
        .gate = placed(&s->gate, region),
        .up = placed(&s->up, region + s->up_off),
        .down = placed(&s->down, region + s->down_off),
        .region = region,
        .refs = 1,
    };
    matrix_pack(&e->gate, s->file, model_file_find(s->file, W_EXPERT_GATE, layer, expert), w);
    matrix_pack(&e->up, s->file, model_file_find(s->file, W_EXPERT_UP, layer, expert), w);
    matrix_pack(&e->down, s->file, model_file_find(s->file, W_EXPERT_DOWN, layer, expert), w);
    s->count++;
    return ERR_OK;
}

void expert_store_unload(struct expert_store *s, uint32_t layer, uint32_t expert)
{
    assert(expert_store_holds(s, layer, expert));
    struct expert *e = expert_at(s, layer, expert);
    if (--e->refs > 0) return;
    mem_unmap(e->region, s->region_bytes);
    *e = (struct expert){0};
    s->count--;
}

bool expert_store_holds(const struct expert_store *s, uint32_t layer, uint32_t expert)
{
    return layer < s->n_layers && expert < s->n_experts &&
           expert_at(s, layer, expert)->region != NULL;
}

uint32_t expert_store_count(const struct expert_store *s)
{
    return s->count;
}

size_t expert_store_bytes(const struct expert_store *s)
{
    return s->count * s->region_bytes;
}

size_t expert_store_bytes_each(const struct expert_store *s)
{
    return s->region_bytes;
}

enum row_format expert_store_rows(const struct expert_store *s)
{
    return s->gate.input;
}

bool expert_store_reply_bf16(const struct expert_store *s)
{
    return s->reply_bf16;
}
