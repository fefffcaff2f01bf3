#include <assert.h>

#include "common/base/mem.h"
#include "coordinator/model/model_internal.h"

size_t model_kv_block_bytes(const struct model *m)
{
    return kv_head_numbers(&m->kv_shape) * m->kv_shape.heads * m->hp->n_layers *
           (m->kv_bf16 ? 2 : 4);
}

enum err_code kv_store_open(const struct model *m, uint32_t n_blocks, struct kv_store **out,
                            struct err *why)
{
    struct kv_store *kv = mem_zalloc(sizeof *kv);
    if (kv == NULL) return err_nomem(why, "key-value store");
    kv->m = m;
    kv->n_blocks = n_blocks;
    kv->block_bytes = model_kv_block_bytes(m);
    if (size_mul(kv->block_bytes, n_blocks, &kv->bytes)) kv->data = mem_map(kv->bytes);
    if (kv->data == NULL) {
        mem_free(kv);
        return err_set(why, ERR_EXHAUSTED, "no memory for %u key-value blocks of %zu bytes",
                       n_blocks, model_kv_block_bytes(m));
    }
    *out = kv;
    return ERR_OK;
}

void kv_store_close(struct kv_store *kv)
{
    if (kv == NULL) return;
    mem_unmap(kv->data, kv->bytes);
    mem_free(kv);
}
