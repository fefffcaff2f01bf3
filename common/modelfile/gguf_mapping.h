/* gguf_mapping.h - inside common/modelfile only: reading a GGUF file's keys and tensors, and writing config.json's, for
 * gguf_config.c (what is common) and gguf_families.c (what families have). One thread. */
#ifndef MOESAIC_MODELFILE_GGUF_MAPPING_H
#define MOESAIC_MODELFILE_GGUF_MAPPING_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/modelfile/gguf_set.h"

#define GGUF_KEY_MAX         128u
#define GGUF_ARCH_MAX_HONORS 10u

struct gguf_mapping;

struct gguf_arch {
    const char *name;       /* general.architecture */
    const char *model_type; /* of config.json; NULL: fill() says */
    const char *n_experts;  /* config.json's key; NULL: dense */
    bool permuted;          /* rows of q and k (gguf_config.h) */
    uint32_t
        gating; /* bits: the values of expert_gating_func that the family has; without the key: as the family */
    int norm_topk; /* renormalization where the file does not say: 0, 1; -1: config.json has no key for it */
    const char
        *honors[GGUF_ARCH_MAX_HONORS];    /* of the keys that are else refused (gguf_config.c) */
    void (*fill)(struct gguf_mapping *m); /* the family's keys */
};

extern const struct gguf_arch gguf_archs[]; /* ends with a name of NULL */

/* The first fault sticks, and later reads answer nothing. */
struct gguf_mapping {
    const struct gguf_set *set;
    const struct gguf *g;
    const struct gguf_arch *arch;
    json_t *config;
    uint32_t n_layers;
    enum err_code rc;
    struct err *why;
};

void mapping_fail(struct gguf_mapping *m, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Keys are given without "ARCH."; this puts it before. */
const char *mapping_full_key(const struct gguf_mapping *m, const char *key, char out[GGUF_KEY_MAX]);

/* False if the key is missing. An integer may be a list of one for each layer, which must all be the same. */
bool mapping_get_int(struct gguf_mapping *m, const char *key, int64_t *out);
bool mapping_get_real(struct gguf_mapping *m, const char *key, double *out);
int64_t mapping_int_or(struct gguf_mapping *m, const char *key, int64_t fallback);
bool mapping_bool_or(struct gguf_mapping *m, const char *key, bool fallback);

/* Into m->config. `set` takes v; NULL: memory was short. */
void mapping_set(struct gguf_mapping *m, const char *key, json_t *v);
void mapping_set_int(struct gguf_mapping *m, const char *key, int64_t x);
void mapping_set_bool(struct gguf_mapping *m, const char *key, bool x);
void mapping_set_text(struct gguf_mapping *m, const char *key, const char *s);
void mapping_set_real(struct gguf_mapping *m, const char *key, double x); /* mapping_shortest */

/* GGUF keeps reals in 32 bits; config.json had them in decimal. The shortest decimal that gives these 32 bits is what it
 * said: 0.2, not 0.20000000298. A finite x stays finite. */
double mapping_shortest(double x);

/* From a key to config.json's, if it is there (require: else a fault; `fallback` above 0: else that). */
void mapping_copy_int(struct gguf_mapping *m, const char *from, const char *to);
void mapping_require_int(struct gguf_mapping *m, const char *from, const char *to);
void mapping_copy_real(struct gguf_mapping *m, const char *from, const char *to, double fallback);

/* Tensors, or NULL: by name; by what follows "blk.N."; of the first layer that has it. */
const struct gguf_tensor *mapping_find_tensor(const struct gguf_mapping *m, const char *name);
const struct gguf_tensor *mapping_find_in_layer(const struct gguf_mapping *m, uint32_t layer,
                                                const char *suffix);
const struct gguf_tensor *mapping_find_in_any(const struct gguf_mapping *m, const char *suffix);
bool mapping_has(const struct gguf_mapping *m, const char *suffix);
/* The f32 numbers of a tensor that is there; NULL after a fault. */
json_t *mapping_read_factors(struct gguf_mapping *m, const char *name);

#endif
