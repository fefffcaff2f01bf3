#include "coordinator/sizing.h"

#include "common/sys/memory.h"
#include "coordinator/model/model.h"

#define MARGIN_BYTES    (64ull << 20) /* libraries, network, connections */
#define RUNNING_MOST    256u
#define FULL_SEQUENCES  64u           /* the cache is not made larger than for so many full contexts */

/* Rows of a pass: residual, norm, q, k, v, attention, expert rows and results, and logits for a head. */
static uint64_t scratch_bytes(const struct hparams *hp, uint32_t rows)
{
    uint64_t attention = (uint64_t)(hp->n_heads * 2 + hp->n_kv_heads * 2) * hp->head_dim;
    uint64_t per_row = (uint64_t)hp->hidden * (6 + hp->top_k) + attention + hp->n_experts + hp->dense_width * 3u;
    return rows * per_row * 4 + (uint64_t)64 * hp->vocab * 4;
}

enum err_code sizing_decide(const struct sizing_input *in, struct sizing *out, struct err *why)
{
    const struct hparams *hp = model_file_hparams(in->file);
    uint64_t per_token = plan_kv_bytes_per_token(in->file, in->quantize), per_block = per_token * KV_BLOCK_TOKENS;
    char a[32], b[32];
    if (in->ctx > hp->ctx_max)
        return err_set(why, ERR_INVALID, "--ctx=%u is more than the model's context of %u tokens", in->ctx, hp->ctx_max);
    *out = (struct sizing){.weights_bytes = plan_coordinator(in->file, in->quantize).total,
                           .scratch_bytes = 4 * scratch_bytes(hp, in->chunk)};
    for (uint32_t l = 0; l < hp->n_layers && in->local_experts; l++)
        if (hp->is_moe[l]) out->experts_bytes += hp->n_experts * plan_expert_bytes(in->file, in->quantize, l);
    uint64_t fixed = out->weights_bytes + out->experts_bytes + out->scratch_bytes + MARGIN_BYTES;
    uint64_t least = fixed + (in->ctx > 0 ? ((uint64_t)in->ctx + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS : 1) * per_block;
    if (least > in->available_bytes)
        return err_set(why, ERR_EXHAUSTED,
                       "this process needs %s (weights %llu MiB, experts %llu MiB, cache for %u tokens, scratch) and %s are "
                       "available; use expert nodes on other machines, --quantize q8_0 or a smaller --ctx",
                       memory_text(least, a), (unsigned long long)(out->weights_bytes >> 20),
                       (unsigned long long)(out->experts_bytes >> 20), in->ctx > 0 ? in->ctx : KV_BLOCK_TOKENS,
                       memory_text(in->available_bytes, b));
    /* Half of what is left: other processes of a cluster on this machine have to live too. */
    uint64_t budget = in->kv_bytes > 0 ? in->kv_bytes : (in->available_bytes - fixed) / 2;
    if (in->kv_bytes > 0 && fixed + in->kv_bytes > in->available_bytes)
        return err_set(why, ERR_EXHAUSTED, "--kv-bytes=%s and %s of weights and scratch are more than the %s available",
                       memory_text(in->kv_bytes, a), memory_text(fixed, b), "memory that is");
    uint64_t blocks = budget / per_block;
    if (in->ctx > 0 && blocks * KV_BLOCK_TOKENS < in->ctx) blocks = ((uint64_t)in->ctx + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    if (blocks == 0) blocks = 1;
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
