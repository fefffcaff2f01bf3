#include "common/modelfile/gguf_used.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/modelfile/weights.h"

static bool mark(const struct gguf_set *s, const char *name, bool *used)
{
    const struct gguf_entry *e = gguf_set_find(s, name);
    if (e == NULL) return false;
    used[e - s->entries] = true;
    return true;
}

/* All places of a role in a layer. */
static void mark_role(const struct gguf_set *s, const struct hparams *hp, enum weight_role role,
                      uint32_t layer, bool *used)
{
    uint32_t n_dims;
    uint64_t dims[TENSOR_MAX_DIMS];
    struct weight_place place;
    char name[WEIGHT_NAME_MAX];
    if (!weight_shape(hp, role, layer, &n_dims, dims)) return;
    for (uint32_t i = 0; weight_place(hp, FILES_GGUF, role, layer, i, &place); i++) {
        const bool apart = strstr(place.name, "{expert}") != NULL;
        for (uint32_t expert = 0; expert < (apart ? hp->n_experts : 1); expert++) {
            weight_name(place.name, layer, expert, name);
            if (!mark(s, name, used))
                break; /* one expert is not there: none is, or their absence is noticed elsewhere */
        }
    }
}

/* Of a layer behind the last, or a number that others hold too. */
static bool is_passed_over(const char *name, const struct hparams *hp)
{
    static const char *const known[] = {"rope_freqs.weight", "rope_factors_long.weight",
                                        "rope_factors_short.weight"};
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (strcmp(name, known[i]) == 0) return true;
    if (strncmp(name, "blk.", 4) != 0) return false;
    char *end;
    unsigned long layer = strtoul(name + 4, &end, 10);
    if (end == name + 4 || *end != '.') return false;
    /* the frequencies of the rotation, in files of 2023 */
    return layer >= hp->n_layers || strcmp(end, ".attn_rot_embd.weight") == 0;
}

enum err_code gguf_check_used(const struct gguf_set *s, const struct hparams *hp, struct err *why)
{
    bool *used = mem_zalloc_array(s->n_entries, sizeof *used);
    if (used == NULL) return err_nomem(why, "the list of used tensors");
    for (int role = 0; role < W_N_ROLES; role++) {
        const bool once = weight_scope((enum weight_role)role) == SCOPE_MODEL;
        for (uint32_t layer = 0; layer < (once ? 1 : hp->n_layers); layer++)
            mark_role(s, hp, (enum weight_role)role, layer, used);
    }
    enum err_code rc = ERR_OK;
    for (uint32_t i = 0; i < s->n_entries && rc == ERR_OK; i++) {
        const struct gguf_entry *e = &s->entries[i];
        if (!used[i] && !is_passed_over(e->tensor->name, hp))
            rc = err_set(why, ERR_UNSUPPORTED, "%s: tensor '%s' is not supported with '%s'",
                         s->parts[e->part].path, e->tensor->name, hp->family_name);
    }
    mem_free(used);
    return rc;
}
