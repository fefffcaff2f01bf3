/* GLM-4.5 and Air: a part of each head is rotated; router and leading dense layers as DeepSeek-V3 has them. */
#include "common/modelfile/family.h"

static void read_glm(struct json_fields *f, struct hparams *hp)
{
    family_read_leading_dense(f, hp);
    hp->attention_bias = json_fields_bool(f, "attention_bias", false); /* none on o */
    if (json_fields_bool(f, "use_qk_norm", false)) hp->qk_norm = QK_NORM_HEAD;
    hp->router.n_groups = (uint32_t)json_fields_int(f, "n_group", 1, LIMIT_EXPERTS, 1);
    hp->router.top_groups = (uint32_t)json_fields_int(f, "topk_group", 1, LIMIT_EXPERTS, 1);
    hp->router.scale = (float)json_fields_real(f, "routed_scaling_factor", 1e-3, 1e3, 1);
    const json_t *rope = json_fields_find(f, "rope_parameters");
    const json_t *inner = json_object_get(rope, "partial_rotary_factor");
    double share = json_fields_real(f, "partial_rotary_factor", 1e-3, 1, 0.5);
    if (json_is_number(inner)) share = json_number_value(inner);
    hp->rope_dim = (uint32_t)(share * hp->head_dim);
    if (hp->rope_dim == 0 || hp->rope_dim % 2 != 0 || hp->rope_dim > hp->head_dim)
        json_fields_fail(f, ERR_CORRUPT,
                         "'partial_rotary_factor' makes %u of a head of %u rotate, which must be "
                         "even and at least 2",
                         hp->rope_dim, hp->head_dim);
}

const struct family_rule family_glm4_moe = {
    .model_type = "glm4_moe",
    .n_experts = "n_routed_experts",
    .expert_width = "moe_intermediate_size",
    .rope_theta = 1e4,
    .norm_eps = 1e-5,
    .honors = {"n_shared_experts", "first_k_dense_replace", "n_group", "topk_group",
               "routed_scaling_factor", "partial_rotary_factor", "attention_bias", "use_qk_norm"},
    .base = {.router = {.score = SCORE_SIGMOID,
                        .correction = true,
                        .renormalized = true,
                        .renormalize_eps = 1e-20,
                        .group_score = GROUP_TOP2_SUM}},
    .has_norm_topk_prob = true,
    .read = read_glm,
};
