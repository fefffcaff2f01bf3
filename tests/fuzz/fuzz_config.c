/* config.json and, after a line "----", generation_config.json: the numbers of an accepted model are within their
 * limits, and so is the shape of every tensor that they ask for. */
// links: modelfile
// covers: common/modelfile/hparams.c common/modelfile/rope_params.c common/modelfile/json_fields.c
// max_len: 4096
#include <math.h>

#include "common/modelfile/hparams.h"
#include "common/modelfile/weights.h"
#include "tests/fuzz/fuzz.h"

void fuzz_init(void) {}

static bool within(uint32_t x, uint32_t max)
{
    return x >= 1 && x <= max;
}

static void check(const struct hparams *hp)
{
    FUZZ_CHECK(within(hp->n_layers, LIMIT_LAYERS) && within(hp->hidden, LIMIT_HIDDEN) &&
                   within(hp->vocab, LIMIT_VOCAB) && within(hp->ctx_max, LIMIT_CONTEXT),
               "layers %u hidden %u vocab %u context %u", hp->n_layers, hp->hidden, hp->vocab,
               hp->ctx_max);
    FUZZ_CHECK(within(hp->n_heads, LIMIT_HEADS) && within(hp->n_kv_heads, hp->n_heads) &&
                   hp->n_heads % hp->n_kv_heads == 0 && within(hp->head_dim, LIMIT_HEAD_DIM) &&
                   hp->head_dim % 2 == 0,
               "heads %u/%u of %u", hp->n_heads, hp->n_kv_heads, hp->head_dim);
    FUZZ_CHECK(hp->n_experts == 0 ||
                   (within(hp->n_experts, LIMIT_EXPERTS) && within(hp->top_k, LIMIT_TOP_K) &&
                    hp->top_k <= hp->n_experts && within(hp->expert_width, LIMIT_FFN_WIDTH)),
               "experts %u of %u of width %u", hp->top_k, hp->n_experts, hp->expert_width);
    FUZZ_CHECK(isfinite(hp->rope.theta) && (hp->rope.theta > 0 || hp->relative_bias.buckets > 0) &&
                   hp->norm_eps > 0,
               "theta %g, eps %g", hp->rope.theta, (double)hp->norm_eps);
    FUZZ_CHECK(hp->bos >= -1 && hp->bos < (int32_t)hp->vocab, "bos %d", hp->bos);
    FUZZ_CHECK(hp->n_eos <= HPARAMS_MAX_EOS, "%u eos", hp->n_eos);
    for (uint32_t i = 0; i < hp->n_eos; i++)
        FUZZ_CHECK(hp->eos[i] >= 0 && hp->eos[i] < (int32_t)hp->vocab, "eos %d", hp->eos[i]);
}

int fuzz_one(const uint8_t *data, size_t n)
{
    size_t n_config;
    const uint8_t *config = fuzz_part(&data, &n, &n_config);
    fuzz_put_file("config.json", config, n_config);
    fuzz_put_file("generation_config.json", n > 0 ? data : NULL, n);

    struct hparams hp;
    struct err why;
    enum err_code rc = hparams_read(fuzz_dir(), &hp, &why);
    if (rc != ERR_OK) return rc == ERR_EXHAUSTED ? FUZZ_NO_MEMORY : (int)rc;
    check(&hp);
    for (int role = 0; role < W_N_ROLES; role++)
        for (uint32_t layer = 0; layer < hp.n_layers; layer++) {
            uint32_t n_dims;
            uint64_t dims[TENSOR_MAX_DIMS] = {1, 1};
            char name[WEIGHT_NAME_MAX];
            if (!weight_shape(&hp, (enum weight_role)role, layer, &n_dims, dims)) continue;
            FUZZ_CHECK(n_dims >= 1 && n_dims <= 3 && dims[0] >= 1 && dims[0] <= UINT32_MAX &&
                           dims[n_dims - 1] >= 1 && dims[n_dims - 1] <= UINT32_MAX,
                       "role %d: %llu x %llu", role, (unsigned long long)dims[0],
                       (unsigned long long)dims[1]);
            struct weight_place place;
            for (uint32_t i = 0;
                 weight_place(&hp, FILES_HF, (enum weight_role)role, layer, i, &place); i++)
                weight_name(place.name, weight_place_layer(&hp, &place, layer),
                            hp.n_experts > 0 ? hp.n_experts - 1 : 0, name);
        }
    return 100 + (int)hp.family;
}
