/* Llama 2 and 3, Mistral (dense), Mixtral: the plain forms. */
#include "common/modelfile/family.h"

#define MOE "model.layers.{layer}.block_sparse_moe."

const struct family_rule family_llama = {
    .model_type = "llama",
    .rope_theta = 1e4,
    .norm_eps = 1e-6,
    .may_have_bias = true,
};

/* The official code has a window of 4096 where the key is absent, and none where it is null. */
static void read_mistral(struct json_fields *f, struct hparams *hp)
{
    if (json_object_get(f->object, "sliding_window") != NULL) {
        family_read_window(f, hp);
        return;
    }
    for (uint32_t l = 0; l < hp->n_layers; l++)
        hp->sliding_window[l] = 4096;
}

const struct family_rule family_mistral = {
    .model_type = "mistral", .rope_theta = 1e4, .norm_eps = 1e-6, .read = read_mistral};

static const struct weight_place mixtral_places[] = {
    {MOE "gate.weight", .role = W_ROUTER},
    {MOE "experts.{expert}.w1.weight", .role = W_EXPERT_GATE},
    {MOE "experts.{expert}.w3.weight", .role = W_EXPERT_UP},
    {MOE "experts.{expert}.w2.weight", .role = W_EXPERT_DOWN},
    {.name = NULL},
};

const struct family_rule family_mixtral = {
    .model_type = "mixtral",
    .n_experts = "num_local_experts",
    .n_experts_too = "num_experts",
    .expert_width = "intermediate_size",
    .rope_theta = 1e6,
    .norm_eps = 1e-5,
    .base = {.router = {.renormalized = true}},
    .read = family_read_window,
    .places = mixtral_places,
};
