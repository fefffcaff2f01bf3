/* A GGUF file: whatever its header says, the tensors of an accepted one lie in it, aligned and apart; every key can be
 * found and read; what it says of its model is refused or is numbers within their limits. */
// links: modelfile
// covers: common/modelfile/gguf.c common/modelfile/gguf_values.c common/modelfile/gguf_mapping.c
// covers: common/modelfile/gguf_config.c common/modelfile/gguf_families.c common/modelfile/gguf_used.c
// max_len: 8192
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/modelfile/gguf.h"
#include "common/modelfile/gguf_config.h"
#include "common/modelfile/gguf_used.h"
#include "common/modelfile/hparams.h"
#include "tests/fuzz/fuzz.h"

void fuzz_init(void) {}

static void check_tensors(const struct gguf *g, size_t n)
{
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        FUZZ_CHECK(t->off >= g->data_off && t->off <= n && t->bytes <= n - t->off,
                   "%s at %llu + %llu of %zu", t->name, (unsigned long long)t->off,
                   (unsigned long long)t->bytes, n);
        FUZZ_CHECK((t->off - g->data_off) % g->alignment == 0, "%s is not aligned", t->name);
        FUZZ_CHECK(t->n_dims >= 1 && t->n_dims <= TENSOR_MAX_DIMS && t->bytes > 0, "%s", t->name);
        FUZZ_CHECK(gguf_find_tensor(g, t->name) == t, "%s is not found", t->name);
        /* plain search against the sorted one: none begins inside another */
        for (uint32_t j = 0; j < g->n_tensors; j++)
            FUZZ_CHECK(j == i || g->tensors[j].off < t->off ||
                           g->tensors[j].off >= t->off + t->bytes,
                       "%s and %s overlap", t->name, g->tensors[j].name);
    }
}

static void check_value(const struct gguf *g, const struct gguf_value *v, const uint8_t *data,
                        size_t n)
{
    char key[256];
    if (v->key.n < sizeof key) {
        memcpy(key, v->key.s, v->key.n);
        key[v->key.n] = '\0';
        FUZZ_CHECK(gguf_find(g, key) == v, "'%s' is not found", key);
        uint32_t u;
        double x;
        bool yes;
        struct gguf_text text;
        const struct gguf_value *list;
        (void)gguf_u32(g, key, &u, NULL);
        (void)gguf_bool(g, key, &yes, NULL);
        (void)gguf_string(g, key, &text, NULL);
        (void)gguf_reals(g, key, &list, NULL);
        (void)gguf_strings(g, key, &list, NULL);
        (void)gguf_integers(g, key, &list, NULL);
        (void)gguf_real(g, key, &x, NULL);
    }
    for (uint64_t i = 0; i < v->n; i++) {
        if (v->type == GGUF_STRING) {
            struct gguf_text t = gguf_text_at(v, i);
            const uint8_t *s = (const uint8_t *)t.s;
            FUZZ_CHECK(s >= data && s <= data + n && t.n <= (size_t)(data + n - s), "a text");
        } else {
            (void)gguf_real_at(v, i);
        }
    }
}

int fuzz_one(const uint8_t *data, size_t n)
{
    struct gguf g;
    struct err why;
    enum err_code rc = gguf_parse(data, n, &g, &why);
    if (rc != ERR_OK) return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : (int)rc;
    check_tensors(&g, n);
    for (uint32_t i = 0; i < g.n_values; i++)
        check_value(&g, &g.values[i], data, n);
    gguf_deinit(&g);

    fuzz_put_file("m.gguf", data, n);
    char path[600];
    snprintf(path, sizeof path, "%s/m.gguf", fuzz_dir());
    struct gguf_set set;
    rc = gguf_set_open(path, false, &set, &why);
    if (rc != ERR_OK) return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : 100 + (int)rc;
    json_t *config = NULL;
    (void)gguf_config_permuted(&set);
    rc = gguf_config(&set, &config, &why);
    FUZZ_CHECK((rc == ERR_OK) == (config != NULL), "%s", err_name(rc));
    struct hparams hp;
    enum err_code taken = rc == ERR_OK ? hparams_read_object(config, "m.gguf", &hp, &why) : rc;
    if (taken == ERR_OK) taken = gguf_check_used(&set, &hp, &why);
    json_decref(config);
    gguf_set_close(&set);
    if (rc == ERR_EXHAUSTED || taken == ERR_EXHAUSTED) return FUZZ_NO_MEMORY;
    FUZZ_CHECK(taken != ERR_OK || (isfinite(hp.rope.theta) && hp.n_layers >= 1), "theta %g",
               hp.rope.theta);
    return 200 + (int)rc * 32 + (int)taken;
}
