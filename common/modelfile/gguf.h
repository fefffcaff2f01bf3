/* gguf.h - the header of a GGUF file, versions 2 and 3. Pure over the bytes given: no files, no state, any thread.
 *
 *   "GGUF" | u32 version | u64 tensors | u64 keys | keys | tensor infos | padding to general.alignment | data
 *
 * Values are views into the bytes, which must stay where they are: a vocabulary is not copied. Nothing is trusted: counts
 * are held against the bytes that are left before anything is allocated, what is allocated is at most seven times the header's
 * bytes, and the tensors of an accepted file are aligned, lie in it, and do not overlap. */
#ifndef MOESAIC_MODELFILE_GGUF_H
#define MOESAIC_MODELFILE_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/modelfile/model_file.h"
#include "common/tensor/dtype.h"

#define GGUF_NAME_MAX 64u /* bytes of a tensor's name, its 0 included */

enum gguf_type { /* the file's numbers */
                 GGUF_U8,
                 GGUF_I8,
                 GGUF_U16,
                 GGUF_I16,
                 GGUF_U32,
                 GGUF_I32,
                 GGUF_F32,
                 GGUF_BOOL,
                 GGUF_STRING,
                 GGUF_ARRAY,
                 GGUF_U64,
                 GGUF_I64,
                 GGUF_F64,
                 GGUF_N_TYPES
};

struct gguf_text { /* not 0-terminated, any bytes */
    const char *s;
    size_t n;
};

struct gguf_value {
    struct gguf_text key; /* printable ASCII */
    bool is_array;
    enum gguf_type type; /* of an array: that of its elements; never GGUF_ARRAY */
    uint64_t n;          /* elements; 1 if it is no array */
    const uint8_t *data; /* of the first element */
    uint32_t *index;     /* of strings in an array: where each begins, from data */
};

struct gguf_tensor {
    char name[GGUF_NAME_MAX];
    uint32_t type;         /* the file's number */
    const char *type_text; /* "Q4_K"; static */
    enum dtype dtype;      /* DTYPE_N for a type that no model has weights in (I32, F64, ..) */
    uint32_t n_dims;
    uint64_t dims[TENSOR_MAX_DIMS]; /* as in the file: dims[0] is the length of a row */
    uint64_t off, bytes;            /* off from the start of the file */
};

struct gguf {
    uint32_t version, alignment;
    struct gguf_value *values; /* in the file's order */
    uint32_t n_values;
    struct gguf_tensor *tensors; /* in the file's order */
    uint32_t n_tensors;
    uint64_t data_off; /* where the data begin; may be past the end of a file without tensors */
    const struct gguf_value **by_key;   /* in order of keys */
    const struct gguf_tensor **by_name; /* in order of names (strcmp) */
};

/* Parse and check a whole file of n bytes; reads the header only. CORRUPT names key or tensor and the two numbers that
 * disagree; UNSUPPORTED: another version, big-endian, a type that is not known; EXHAUSTED. On failure `out` is empty. */
enum err_code gguf_parse(const uint8_t *bytes, size_t n, struct gguf *out, struct err *why);
void gguf_deinit(struct gguf *g);

const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name); /* or NULL */
const struct gguf_value *gguf_find(const struct gguf *g, const char *key);          /* or NULL */
const char *gguf_type_name(enum gguf_type t);                                       /* "u32" */

/* One value by its key. NOT_FOUND leaves *out as it was, so that a default may stand there; any other failure is CORRUPT and
 * names the key, what it is and what it should be. Integers: of any width that holds the number. Reals: f32, f64 or an
 * integer. Strings: views. */
enum err_code gguf_u32(const struct gguf *g, const char *key, uint32_t *out, struct err *why);
enum err_code gguf_i64(const struct gguf *g, const char *key, int64_t *out, struct err *why);
enum err_code gguf_real(const struct gguf *g, const char *key, double *out, struct err *why);
enum err_code gguf_bool(const struct gguf *g, const char *key, bool *out, struct err *why);
enum err_code gguf_string(const struct gguf *g, const char *key, struct gguf_text *out,
                          struct err *why);
/* An array of strings; of integers (any width); of reals (f32, f64). */
enum err_code gguf_strings(const struct gguf *g, const char *key, const struct gguf_value **out,
                           struct err *why);
enum err_code gguf_integers(const struct gguf *g, const char *key, const struct gguf_value **out,
                            struct err *why);
enum err_code gguf_reals(const struct gguf *g, const char *key, const struct gguf_value **out,
                         struct err *why);

/* Element i < v->n, in constant time. The type must be of the kind asked for (asserted). */
struct gguf_text gguf_text_at(const struct gguf_value *v, uint64_t i);
bool gguf_i64_at(const struct gguf_value *v, uint64_t i,
                 int64_t *out); /* integers and bool; false: a u64 that does not fit */
double gguf_real_at(const struct gguf_value *v, uint64_t i); /* any number */
bool gguf_text_is(struct gguf_text t, const char *s);

#endif
