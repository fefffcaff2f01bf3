/* OLMoE: q/k norm over all heads, which may then be clipped. */
#include "common/modelfile/family.h"

static void read_olmoe(struct json_fields *f, struct hparams *hp)
{
    (void)hp;
    if (json_fields_find(f, "sliding_window") != NULL) family_unsupported(f, "sliding_window");
}

const struct family_rule family_olmoe = {
    .model_type = "olmoe",
    .n_experts = "num_experts",
    .n_experts_too = "num_local_experts",
    .expert_width = "intermediate_size",
    .rope_theta = 1e4,
    .norm_eps = 1e-5,
    .honors = {"clip_qkv"},
    .base = {.qk_norm = QK_NORM_FULL},
    .may_have_bias = true,
    .has_norm_topk_prob = true,
    .read = read_olmoe,
};
