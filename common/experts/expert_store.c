#include "common/experts/experts.h"

#include <assert.h>

#include "common/base/mem.h"
#include "common/experts/expert_internal.h"
#include "common/experts/matrix.h"

static bool same_geometry(const struct packed *a, const struct packed *b)
{
    return a->format == b->format && a->input == b->input && a->n == b->n && a->k == b->k;
}

/* The experts of a layer are packed alike: several go into one message, and one loop. */
static enum err_code check_role(const struct expert_store *s, uint32_t layer, enum weight_role role,
                                struct packed *out, struct err *why)
{
    const struct tensor *first = NULL;
    for (uint32_t e = 0; e < s->n_experts; e++) {
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
                           "tensor '%s' is %s, but '%s' is %s: experts of a layer must agree",
                           t->name, dtype_name(t->dtype), first->name, dtype_name(first->dtype));
        }
    }
    return ERR_OK;
}

static size_t take(size_t *used, size_t bytes)
{
    size_t at = *used;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

static enum err_code measure(const struct expert_store *s, uint32_t layer,
                             struct expert_geometry *g, struct err *why)
{
    enum err_code rc = check_role(s, layer, W_EXPERT_GATE, &g->gate, why);
    if (rc == ERR_OK) rc = check_role(s, layer, W_EXPERT_UP, &g->up, why);
    if (rc == ERR_OK) rc = check_role(s, layer, W_EXPERT_DOWN, &g->down, why);
    const bool has_up = s->hp->activation != FFN_RELU;
    if (rc != ERR_OK || g->gate.n == 0 || (has_up && g->up.n == 0) || g->down.n == 0) return rc;
    if (has_up && g->gate.input != g->up.input)
        return err_set(
            why, ERR_UNSUPPORTED,
            "gate and up weights of experts in layer %u are of types that take different "
            "rows",
            layer);
    size_t used = packed_bytes(&g->gate);
    g->up_off = take(&used, has_up ? packed_bytes(&g->up) : 0);
    g->down_off = take(&used, packed_bytes(&g->down));
    if (s->hp->expert_bias) {
        g->gate_bias_off = take(&used, g->gate.n * sizeof(float));
        g->up_bias_off = take(&used, g->up.n * sizeof(float));
        g->down_bias_off = take(&used, g->down.n * sizeof(float));
    }
    g->region_bytes = used;
    return ERR_OK;
}

static enum err_code measure_all(struct expert_store *s, struct err *why)
{
    bool any = false;
    for (uint32_t layer = 0; layer < s->n_layers; layer++) {
        if (!s->hp->is_moe[layer]) continue;
        enum err_code rc = measure(s, layer, &s->layers[layer], why);
        if (rc != ERR_OK) return rc;
        any |= s->layers[layer].region_bytes > 0;
    }
    if (!any) return err_set(why, ERR_NOT_FOUND, "none of the files that are here holds an expert");
    s->reply_bf16 = !plan_reply_f32(s->file, s->quantize);
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
    s->hp = hp;
    s->n_layers = hp->n_layers;
    s->n_experts = hparams_n_moe_layers(hp) > 0 ? hp->n_experts : 0;

    enum err_code rc = matrix_quantize_parse(quantize, &s->quantize, why);
    if (rc == ERR_OK && s->n_experts > 0) {
        s->layers = mem_zalloc_array(s->n_layers, sizeof *s->layers);
        s->experts = mem_zalloc_array((size_t)s->n_layers * s->n_experts, sizeof *s->experts);
        rc = s->layers == NULL || s->experts == NULL ? err_nomem(why, "expert table")
                                                     : measure_all(s, why);
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
    for (uint32_t l = 0; s->experts != NULL && s->layers != NULL && l < s->n_layers; l++)
        for (uint32_t e = 0; e < s->n_experts; e++)
            mem_unmap(expert_at(s, l, e)->region, s->layers[l].region_bytes);
    mem_free(s->layers);
    mem_free(s->experts);
    mem_free(s->scratch.data);
    mem_free(s->scratch.products);
    mem_free(s->scratch.pieces);
    mem_free(s);
}

static void load_bias(const struct expert_store *s, enum weight_role role, uint32_t layer,
                      uint32_t expert, uint8_t *to)
{
    const struct tensor *t = model_file_find(s->file, role, layer, expert);
    if (t != NULL) tensor_vector_f32(t, (float *)(void *)to);
}

/* Pack what the files hold of an expert into its region. */
static enum err_code fill(const struct expert_store *s, uint32_t layer, uint32_t expert,
                          uint8_t *region, struct workers *w, struct err *why)
{
    const struct expert_geometry *g = &s->layers[layer];
    const struct {
        enum weight_role role;
        struct packed w;
    } matrices[] = {{W_EXPERT_GATE, expert_matrix(&g->gate, region, 0)},
                    {W_EXPERT_UP, expert_matrix(&g->up, region, g->up_off)},
                    {W_EXPERT_DOWN, expert_matrix(&g->down, region, g->down_off)}};
    for (uint32_t i = 0; i < 3; i++) {
        if (matrices[i].w.n == 0) continue; /* no up */
        enum err_code rc =
            matrix_pack(&matrices[i].w, s->file,
                        model_file_find(s->file, matrices[i].role, layer, expert), 0, w, why);
        if (rc != ERR_OK) return rc;
    }
    if (s->hp->expert_bias) {
        load_bias(s, W_EXPERT_GATE_BIAS, layer, expert, region + g->gate_bias_off);
        load_bias(s, W_EXPERT_UP_BIAS, layer, expert, region + g->up_bias_off);
        load_bias(s, W_EXPERT_DOWN_BIAS, layer, expert, region + g->down_bias_off);
    }
    return ERR_OK;
}

/* Every tensor of the expert that the model has must be here. */
static bool is_here(const struct expert_store *s, uint32_t layer, uint32_t expert)
{
    int last = s->hp->expert_bias ? W_EXPERT_DOWN_BIAS : W_EXPERT_DOWN;
    for (int role = W_EXPERT_GATE; role <= last; role++)
        if ((role != W_EXPERT_UP || s->layers[layer].up.n > 0) &&
            model_file_find(s->file, (enum weight_role)role, layer, expert) == NULL)
            return false;
    return true;
}

enum err_code expert_store_load(struct expert_store *s, uint32_t layer, uint32_t expert,
                                struct workers *w, struct err *why)
{
    if (layer >= s->n_layers || expert >= s->n_experts || !s->hp->is_moe[layer])
        return err_set(why, ERR_NOT_FOUND,
                       "the model has no expert %u in layer %u (%u layers, %u experts)", expert,
                       layer, s->n_layers, s->n_experts);
    struct expert *e = expert_at(s, layer, expert);
    if (e->region != NULL) {
        e->refs++;
        return ERR_OK;
    }
    if (!is_here(s, layer, expert))
        return err_set(
            why, ERR_NOT_FOUND,
            "the file with expert %u of layer %u is not on this machine; `moesaic inspect MODEL "
            "--experts %u:%u --files`, where the whole model is, names it",
            expert, layer, layer, expert);
    const size_t bytes = s->layers[layer].region_bytes;
    uint8_t *region = mem_map(bytes);
    if (region == NULL)
        return err_set(why, ERR_EXHAUSTED, "no memory for expert %u of layer %u (%zu bytes)",
                       expert, layer, bytes);
    enum err_code rc = fill(s, layer, expert, region, w, why);
    if (rc != ERR_OK) {
        mem_unmap(region, bytes);
        return rc;
    }
    *e = (struct expert){.region = region, .refs = 1};
    s->count++;
    s->held_bytes += bytes;
    return ERR_OK;
}

void expert_store_unload(struct expert_store *s, uint32_t layer, uint32_t expert)
{
    assert(expert_store_holds(s, layer, expert));
    struct expert *e = expert_at(s, layer, expert);
    if (--e->refs > 0) return;
    mem_unmap(e->region, s->layers[layer].region_bytes);
    *e = (struct expert){0};
    s->count--;
    s->held_bytes -= s->layers[layer].region_bytes;
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
    return s->held_bytes;
}

size_t expert_store_bytes_each(const struct expert_store *s, uint32_t layer)
{
    assert(layer < s->n_layers);
    return s->layers == NULL ? 0 : s->layers[layer].region_bytes;
}

enum row_format expert_store_rows(const struct expert_store *s, uint32_t layer)
{
    assert(layer < s->n_layers && s->layers != NULL);
    return s->layers[layer].gate.input;
}

bool expert_store_reply_bf16(const struct expert_store *s)
{
    return s->reply_bf16;
}
