/* experts.h - routed experts held in memory, and the computation of their rows. Used by expert nodes and by a
 * coordinator without nodes alike. One owner thread (its workers help). */
#ifndef MOESAIC_EXPERTS_H
#define MOESAIC_EXPERTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/kernels/kernels.h"
#include "common/modelfile/model_file.h"
#include "common/sys/workers.h"

struct expert_store;

/* Holds nothing at first. `quantize`: plan.h. */
enum err_code expert_store_open(const struct model_file *file, const char *quantize,
                                const struct kernels *k, struct expert_store **out,
                                struct err *why);
void expert_store_close(struct expert_store *s);

/* Map, pack and keep one expert; its source pages are dropped. Loading what is held counts a reference.
 * NOT_FOUND for a layer or expert the model does not have (or a dense layer). */
enum err_code expert_store_load(struct expert_store *s, uint32_t layer, uint32_t expert,
                                struct workers *w, struct err *why);
void expert_store_unload(struct expert_store *s, uint32_t layer, uint32_t expert);
bool expert_store_holds(const struct expert_store *s, uint32_t layer, uint32_t expert);
uint32_t expert_store_count(const struct expert_store *s);
size_t expert_store_bytes(const struct expert_store *s); /* packed bytes held */
size_t expert_store_bytes_each(const struct expert_store *s,
                               uint32_t layer); /* packed bytes of one expert */
enum row_format expert_store_rows(const struct expert_store *s, uint32_t layer);
bool expert_store_reply_bf16(
    const struct expert_store *s); /* results rounded to bf16; false for F32 models */

/* One expert applied to some rows: rows[i] of `in` -> out_rows[i]. */
struct expert_task {
    uint32_t expert;
    uint32_t m;                /* rows, >= 1 */
    const struct rows *in;     /* [*, D] in expert_store_rows() format */
    const uint32_t *row_index; /* [m] rows of `in` */
    void *const *out;          /* [m] where each result row [D] goes: f32 or bf16 */
};

/* Compute all tasks of one layer. Every task's expert must be held (assert: the caller checks).
 * EXHAUSTED when scratch cannot grow. */
enum err_code expert_store_run(struct expert_store *s, uint32_t layer,
                               const struct expert_task *tasks, uint32_t n_tasks, struct workers *w,
                               struct err *why);

#endif
