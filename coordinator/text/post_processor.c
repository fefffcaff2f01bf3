#include "coordinator/text/post_processor.h"

#include <string.h>

#include "coordinator/text/tok_json.h"

static const char where[] = "post_processor TemplateProcessing";

/* Append the ids of one special token of the template. */
static enum err_code put_special(const json_t *specials, const json_t *item,
                                 const struct vocab *vocab, struct ids *out, struct err *why)
{
    const char *name;
    size_t n;
    json_t *entry, *list;
    enum err_code rc = tok_json_string(item, where, "id", &name, &n, why);
    if (rc != ERR_OK) return rc;
    entry = json_object_get(specials, name);
    if (!json_is_object(entry))
        return err_set(why, ERR_CORRUPT, "%s: '%.40s' is not in special_tokens", where, name);
    rc = tok_json_array(entry, where, "ids", &list, why);
    for (size_t i = 0; rc == ERR_OK && i < json_array_size(list); i++) {
        int id;
        rc = tok_json_id(json_array_get(list, i), "post_processor id", (long long)vocab->n_ids - 1,
                         &id, why);
        if (rc == ERR_OK && vocab_flags(vocab, id) == 0)
            rc = err_set(why, ERR_CORRUPT, "%s: id %d is no token", where, id);
        if (rc == ERR_OK && !ids_push(out, id)) rc = err_nomem(why, where);
    }
    return rc;
}

/* What is there already (an earlier processor of a Sequence) counts as part of A. */
static enum err_code load_template(struct post_processor *p, const json_t *spec,
                                   const struct vocab *vocab, struct err *why)
{
    json_t *single, *specials;
    struct ids before = {0};
    bool seen = false;
    enum err_code rc = tok_json_array(spec, where, "single", &single, why);
    if (rc == ERR_OK) rc = tok_json_object(spec, where, "special_tokens", &specials, why);
    for (size_t i = 0; rc == ERR_OK && i < json_array_size(single); i++) {
        json_t *item = json_array_get(single, i);
        json_t *special = json_object_get(item, "SpecialToken"),
               *sequence = json_object_get(item, "Sequence");
        const json_t *id = json_object_get(sequence, "id");
        if (special != NULL) {
            rc = put_special(specials, special, vocab, seen ? &p->suffix : &before, why);
        } else if (!seen && json_is_string(id) && strcmp(json_string_value(id), "A") == 0) {
            seen = true;
        } else {
            rc =
                err_set(why, ERR_CORRUPT,
                        "%s: item %zu is neither a special token nor the one sequence A", where, i);
        }
    }
    if (rc == ERR_OK && !seen) rc = err_set(why, ERR_CORRUPT, "%s: no sequence A", where);
    if (rc == ERR_OK && !ids_append(&before, p->prefix.data, p->prefix.len))
        rc = err_nomem(why, where);
    if (rc != ERR_OK) {
        ids_free(&before);
        return rc;
    }
    ids_free(&p->prefix);
    p->prefix = before;
    return ERR_OK;
}

static enum err_code load(struct post_processor *p, const json_t *spec, const struct vocab *vocab,
                          struct err *why)
{
    const char *type;
    enum err_code rc = tok_json_type(spec, "post_processor", &type, why);
    if (rc != ERR_OK) return rc;
    if (strcmp(type, "ByteLevel") == 0) return ERR_OK; /* it moves offsets only */
    if (strcmp(type, "TemplateProcessing") == 0) return load_template(p, spec, vocab, why);
    if (strcmp(type, "Sequence") == 0) { /* as deep as the JSON parser allows */
        json_t *list;
        rc = tok_json_array(spec, "post_processor Sequence", "processors", &list, why);
        for (size_t i = 0; rc == ERR_OK && i < json_array_size(list); i++)
            rc = load(p, json_array_get(list, i), vocab, why);
        return rc;
    }
    return tok_json_refuse("post_processor", type, why);
}

enum err_code post_processor_init(struct post_processor *p, const json_t *spec,
                                  const struct vocab *vocab, struct err *why)
{
    *p = (struct post_processor){0};
    enum err_code rc = spec == NULL || json_is_null(spec) ? ERR_OK : load(p, spec, vocab, why);
    if (rc != ERR_OK) post_processor_deinit(p);
    return rc;
}

void post_processor_deinit(struct post_processor *p)
{
    ids_free(&p->prefix);
    ids_free(&p->suffix);
}
