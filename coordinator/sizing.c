#include "coordinator/sizing.h"

#include <stdio.h>

#include "common/sys/memory.h"
#include "coordinator/model/model.h"

#define MARGIN_BYTES   (64ull << 20) /* libraries, network, connections */
#define RUNNING_MOST   256u
#define FULL_SEQUENCES 64u /* the cache is not made larger than for so many full contexts */
#define DECODE_ROWS    64u /* of a decode pass, and logit rows of any */

/* Rows of a pass: residual, norm, queries, keys, values, attention, expert rows and results, feed-forward, and logits for a
 * head. Rows for products are there in up to three formats. */
static uint64_t scratch_bytes(const struct hparams *hp, uint32_t rows)
{
    const struct kv_shape kv = hparams_kv_shape(hp);
    const uint64_t heads = hp->n_heads;
    uint64_t attention = heads * (hp->head_dim + 2 * hp->value_dim) +
                         (uint64_t)kv.heads * (kv.key_dim + kv.value_dim);
    if (hp->mla.kv_rank > 0)
        attention += heads * (kv.key_dim + 2 * (uint64_t)(hp->mla.nope + hp->mla.kv_rank)) +
                     2 * (uint64_t)hp->mla.q_rank;
    uint64_t ffn = hp->dense_width > hp->shared_width ? hp->dense_width : hp->shared_width;
    uint64_t per_row = (uint64_t)hp->hidden * (8 + hp->top_k) + attention + hp->n_experts + 3 * ffn;
    return rows * per_row * 4 + (uint64_t)DECODE_ROWS * hp->vocab * 4;
}

enum err_code sizing_decide(const struct sizing_input *in, struct sizing *out, struct err *why)
{
    const struct hparams *hp = model_file_hparams(in->file);
    uint64_t per_token = plan_kv_bytes_per_token(in->file, in->quantize),
             per_block = per_token * KV_BLOCK_TOKENS;
    char a[32], b[32], c[32];
    if (in->ctx > hp->ctx_max)
        return err_set(why, ERR_INVALID, "--ctx=%u is more than the model's context of %u tokens",
                       in->ctx, hp->ctx_max);
    *out = (struct sizing){
        .weights_bytes = plan_coordinator(in->file, in->quantize).total,
        .scratch_bytes = 4 * scratch_bytes(hp, in->chunk > DECODE_ROWS ? in->chunk : DECODE_ROWS)};
    for (uint32_t l = 0; l < hp->n_layers && in->local_experts; l++)
        if (hp->is_moe[l])
            out->experts_bytes += hp->n_experts * plan_expert_bytes(in->file, in->quantize, l);
    uint64_t fixed = out->weights_bytes + out->experts_bytes + out->scratch_bytes + MARGIN_BYTES;
    uint64_t ctx_blocks =
        in->ctx > 0 ? ((uint64_t)in->ctx + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS : 1;
    if (in->kv_bytes > 0 && in->kv_bytes / per_block < ctx_blocks)
        return err_set(
            why, ERR_INVALID,
            "--kv-bytes=%llu hold %llu tokens (%llu bytes each), and %s of %u tokens is wanted; give at least %llu bytes",
            (unsigned long long)in->kv_bytes,
            (unsigned long long)(in->kv_bytes / per_block * KV_BLOCK_TOKENS),
            (unsigned long long)per_token, in->ctx > 0 ? "a --ctx" : "one block",
            in->ctx > 0 ? in->ctx : KV_BLOCK_TOKENS, (unsigned long long)(ctx_blocks * per_block));
    uint64_t least = fixed + (in->kv_bytes > 0 ? in->kv_bytes : ctx_blocks * per_block);
    if (least > in->available_bytes) {
        char cache[64];
        if (in->kv_bytes > 0)
            snprintf(cache, sizeof cache, "--kv-bytes %s", memory_text(in->kv_bytes, c));
        else
            snprintf(cache, sizeof cache, "cache for %u tokens",
                     in->ctx > 0 ? in->ctx : KV_BLOCK_TOKENS);
        return err_set(
            why, ERR_EXHAUSTED,
            "this process needs %s (weights %llu MiB, experts %llu MiB, %s, scratch %llu MiB) and %s are "
            "available; use expert nodes on other machines, --quantize q8_0 or a smaller %s",
            memory_text(least, a), (unsigned long long)(out->weights_bytes >> 20),
            (unsigned long long)(out->experts_bytes >> 20), cache,
            (unsigned long long)(out->scratch_bytes >> 20), memory_text(in->available_bytes, b),
            in->kv_bytes > 0 ? "--kv-bytes" : "--ctx");
    }
    /* Half of what is left beside the nodes of this machine: others have to live too. */
    uint64_t left = in->available_bytes - fixed;
    left = left > in->neighbours_bytes ? left - in->neighbours_bytes : 0;
    uint64_t blocks = (in->kv_bytes > 0 ? in->kv_bytes : left / 2) / per_block;
    if (blocks < ctx_blocks) blocks = ctx_blocks;
    uint64_t tokens = blocks * KV_BLOCK_TOKENS;
    out->ctx = in->ctx > 0 ? in->ctx : tokens < hp->ctx_max ? (uint32_t)tokens : hp->ctx_max;
    uint64_t most = FULL_SEQUENCES * (((uint64_t)out->ctx + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS);
    if (in->kv_bytes == 0 && blocks > most) blocks = most;
    out->n_kv_blocks = (uint32_t)(blocks < UINT32_MAX ? blocks : UINT32_MAX);
    out->kv_bytes = out->n_kv_blocks * per_block;
    out->max_running = RUNNING_MOST;
    out->total_bytes = fixed + out->kv_bytes;
    return ERR_OK;
}
