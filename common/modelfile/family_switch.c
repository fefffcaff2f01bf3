/* Switch Transformers: T5 with experts. An encoder and a decoder, distances by a learned bias, one expert per token; an expert
 * of the encoder takes a limited number of a prompt's tokens. Published as pickles, which are programs and never run
 * here: convert them to safetensors. */
#include <math.h>
#include <string.h>

#include "common/modelfile/family.h"

#define ENC               "encoder.block.{layer}."
#define DEC               "decoder.block.{layer}."
#define DEFAULT_POSITIONS 512 /* what T5 was trained with; nothing in it ends there */

/* Of n layers, so many are sparse: every step-th, beginning with the second. */
static void read_sparse(struct json_fields *f, const char *key, uint32_t first, uint32_t n,
                        struct hparams *hp)
{
    uint32_t sparse = (uint32_t)json_fields_int(f, key, 0, LIMIT_LAYERS, 3);
    uint32_t step = sparse > 0 ? n / sparse : n;
    for (uint32_t i = 0; i < n && step > 0; i++)
        hp->is_moe[first + i] = step == 1 || i % step == 1;
}

static void expect(struct json_fields *f, const char *key, const char *only)
{
    const char *text = json_fields_text(f, key);
    if (text != NULL && strcmp(text, only) != 0) family_unsupported(f, key);
}

static void read_layers(struct json_fields *f, struct hparams *hp)
{
    uint32_t encoder =
        (uint32_t)json_fields_int(f, "num_layers", 1, LIMIT_LAYERS / 2, JSON_FIELDS_REQUIRED);
    uint32_t decoder =
        (uint32_t)json_fields_int(f, "num_decoder_layers", 1, LIMIT_LAYERS / 2, encoder);
    hp->n_encoder_layers = encoder;
    hp->n_layers = encoder + decoder;
    read_sparse(f, "num_sparse_encoder_layers", 0, encoder, hp);
    read_sparse(f, "num_sparse_decoder_layers", encoder, decoder, hp);
    for (uint32_t l = 0; l < hp->n_layers; l++)
        hp->no_rope[l] = true;
    hp->decoder_start = (int32_t)json_fields_int(f, "decoder_start_token_id", 0, hp->vocab - 1, 0);
}

static void read_switch(struct json_fields *f, struct hparams *hp)
{
    hp->vocab = (uint32_t)json_fields_int(f, "vocab_size", 1, LIMIT_VOCAB, JSON_FIELDS_REQUIRED);
    hp->hidden = family_width(f, "d_model");
    hp->head_dim = (uint32_t)json_fields_int(f, "d_kv", 2, LIMIT_HEAD_DIM, JSON_FIELDS_REQUIRED);
    hp->n_heads = (uint32_t)json_fields_int(f, "num_heads", 1, LIMIT_HEADS, JSON_FIELDS_REQUIRED);
    if (hp->hidden > LIMIT_HIDDEN || hp->head_dim % 2 != 0)
        json_fields_fail(f, ERR_UNSUPPORTED, "'d_model' %u or 'd_kv' %u: must be even, at most %u",
                         hp->hidden, hp->head_dim, LIMIT_HIDDEN);
    hp->n_kv_heads = hp->n_heads;
    hp->value_dim = hp->rope_dim = hp->head_dim;
    hp->score_scale = 1; /* the scores are not scaled */
    read_layers(f, hp);
    hp->dense_width = hp->expert_width = family_width(f, "d_ff");
    hp->norm_eps = (float)json_fields_real(f, "layer_norm_epsilon", 1e-12, 0.1, 1e-6);
    hp->relative_bias.buckets =
        (uint32_t)json_fields_int(f, "relative_attention_num_buckets", 4, 4096, 32);
    hp->relative_bias.max_distance =
        (uint32_t)json_fields_int(f, "relative_attention_max_distance", 2, LIMIT_CONTEXT, 128);
    if (hp->relative_bias.buckets % 4 != 0 ||
        hp->relative_bias.max_distance <= hp->relative_bias.buckets / 2)
        json_fields_fail(
            f, ERR_UNSUPPORTED,
            "'relative_attention_num_buckets' %u must be a multiple of 4, and less than "
            "twice 'relative_attention_max_distance' %u",
            hp->relative_bias.buckets, hp->relative_bias.max_distance);
    hp->ctx_max =
        2 * (uint32_t)json_fields_int(f, "n_positions", 1, LIMIT_CONTEXT / 2, DEFAULT_POSITIONS);
    hp->n_experts =
        (uint32_t)json_fields_int(f, "num_experts", 1, LIMIT_EXPERTS, JSON_FIELDS_REQUIRED);
    hp->top_k = 1;
    hp->expert_capacity = (uint32_t)json_fields_int(f, "expert_capacity", 1, LIMIT_CONTEXT, 64);
    hp->router.bias = json_fields_bool(f, "router_bias", false);
    hp->tied_head = json_fields_bool(f, "tie_word_embeddings", true);
    if (hp->tied_head) hp->logit_scale = 1.0f / sqrtf((float)hp->hidden);
    expect(f, "feed_forward_proj", "relu");
    expect(f, "dense_act_fn", "relu");
    if (json_fields_bool(f, "is_gated_act", false)) family_unsupported(f, "is_gated_act");
    if (!json_fields_bool(f, "is_encoder_decoder", true))
        family_unsupported(f, "is_encoder_decoder");
    if (f->rc == ERR_OK && hparams_n_moe_layers(hp) == 0)
        json_fields_fail(f, ERR_UNSUPPORTED, "no layer has experts");
}

#define BOTH(role_, name_)                                                                         \
    {ENC name_, .role = role_, .stack = STACK_ENCODER},                                            \
    {                                                                                              \
        DEC name_, .role = role_, .stack = STACK_DECODER                                           \
    }
/* The feed-forward part is the encoder's second part of a layer, the decoder's third. */
#define FFN(role_, name_)                                                                          \
    {ENC "layer.1." name_, .role = role_, .stack = STACK_ENCODER},                                 \
    {                                                                                              \
        DEC "layer.2." name_, .role = role_, .stack = STACK_DECODER                                \
    }

static const struct weight_place places[] = {
    {"shared.weight", .role = W_EMBED},
    {"encoder.final_layer_norm.weight", .role = W_ENCODER_NORM},
    {"decoder.final_layer_norm.weight", .role = W_FINAL_NORM},
    BOTH(W_ATTN_NORM, "layer.0.layer_norm.weight"),
    BOTH(W_Q, "layer.0.SelfAttention.q.weight"),
    BOTH(W_K, "layer.0.SelfAttention.k.weight"),
    BOTH(W_V, "layer.0.SelfAttention.v.weight"),
    BOTH(W_O, "layer.0.SelfAttention.o.weight"),
    BOTH(W_RELATIVE_BIAS, "layer.0.SelfAttention.relative_attention_bias.weight"),
    {DEC "layer.1.layer_norm.weight", .role = W_CROSS_NORM, .stack = STACK_DECODER},
    {DEC "layer.1.EncDecAttention.q.weight", .role = W_CROSS_Q, .stack = STACK_DECODER},
    {DEC "layer.1.EncDecAttention.k.weight", .role = W_CROSS_K, .stack = STACK_DECODER},
    {DEC "layer.1.EncDecAttention.v.weight", .role = W_CROSS_V, .stack = STACK_DECODER},
    {DEC "layer.1.EncDecAttention.o.weight", .role = W_CROSS_O, .stack = STACK_DECODER},
    FFN(W_FFN_NORM, "layer_norm.weight"),
    FFN(W_DENSE_GATE, "mlp.wi.weight"),
    FFN(W_DENSE_DOWN, "mlp.wo.weight"),
    FFN(W_ROUTER, "mlp.router.classifier.weight"),
    FFN(W_ROUTER_BIAS, "mlp.router.classifier.bias"),
    FFN(W_EXPERT_GATE, "mlp.experts.expert_{expert}.wi.weight"),
    FFN(W_EXPERT_DOWN, "mlp.experts.expert_{expert}.wo.weight"),
    {.name = NULL},
};

const struct family_rule family_switch = {
    .model_type = "switch_transformers",
    .architecture = "SwitchTransformersForConditionalGeneration",
    .n_experts = "num_experts",
    .honors = {"is_encoder_decoder"},
    .base = {.activation = FFN_RELU},
    .read_numbers = read_switch,
    .places = places,
};
