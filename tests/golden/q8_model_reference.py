"""A whole Qwen3-MoE model with --quantize q8_0, written again from the definitions: products in exact fractions
(q8_reference.py), everything between them in double, rounded to f32 or bf16 where the definitions round. Only the
standard library; one prompt, no cache. Slow: for the tiny models.

    q8_model_reference.py MODEL_FOLDER ID [ID ...]

prints per position and layer   e POSITION LAYER EXPERT...     (ascending)
and per position                l POSITION LOGIT...            (%.9g)
"""

import json
import math
import os
import struct
import sys

from q8_reference import bits, from_bits, matvec, q8_0_blocks


def single(x):
    """Nearest f32, as a float."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bf16(x):
    u = bits(single(x))
    return from_bits((u + 0x7FFF + (u >> 16 & 1)) >> 16 << 16)


class Weights:
    """F32 tensors of one safetensors file; quantised rows are made when first asked for."""

    def __init__(self, folder):
        with open(os.path.join(folder, "model.safetensors"), "rb") as f:
            data = f.read()
        n = struct.unpack("<Q", data[:8])[0]
        self.header = json.loads(data[8 : 8 + n])
        self.data = data[8 + n :]
        self.rows = {}

    def matrix(self, name):
        t = self.header[name]
        assert t["dtype"] == "F32"
        begin, end = t["data_offsets"]
        values = struct.unpack("<%df" % ((end - begin) // 4), self.data[begin:end])
        if len(t["shape"]) == 1:
            return list(values)
        k = t["shape"][1]
        return [values[i : i + k] for i in range(0, len(values), k)]

    def product(self, name, x):
        if name not in self.rows:
            self.rows[name] = [q8_0_blocks(row) for row in self.matrix(name)]
        return matvec(self.rows[name], x)


def rmsnorm(x, w, eps):
    r = 1 / math.sqrt(sum(v * v for v in x) / len(x) + eps)
    return [single(v * r * g) for v, g in zip(x, w)]


def rotate(x, position, theta):
    half = len(x) // 2
    out = list(x)
    for i in range(half):
        inverse = single(1 / single(theta ** single(2 * i / len(x))))
        angle = single(position * inverse)
        c, s = math.cos(angle), math.sin(angle)
        out[i] = single(x[i] * c - x[i + half] * s)
        out[i + half] = single(x[i + half] * c + x[i] * s)
    return out


def heads(x, width):
    return [x[i : i + width] for i in range(0, len(x), width)]


def attention(w, cfg, layer, norms):
    name = "model.layers.%d.self_attn." % layer
    width, eps = cfg["head_dim"], cfg["rms_norm_eps"]
    group = cfg["num_attention_heads"] // cfg["num_key_value_heads"]
    q_norm, k_norm = w.matrix(name + "q_norm.weight"), w.matrix(name + "k_norm.weight")
    keys, values, out = [], [], []
    for position, x in enumerate(norms):
        q = heads(w.product(name + "q_proj.weight", x), width)
        k = heads(w.product(name + "k_proj.weight", x), width)
        v = heads(w.product(name + "v_proj.weight", x), width)
        q = [rotate(rmsnorm(h, q_norm, eps), position, cfg["rope_theta"]) for h in q]
        k = [rotate(rmsnorm(h, k_norm, eps), position, cfg["rope_theta"]) for h in k]
        keys.append([[bf16(e) for e in h] for h in k])
        values.append([[bf16(e) for e in h] for h in v])
        row = []
        for h, query in enumerate(q):
            scores = [sum(a * b for a, b in zip(query, key[h // group])) / math.sqrt(width) for key in keys]
            top = max(scores)
            p = [math.exp(s - top) for s in scores]
            row += [single(sum(a * v[h // group][d] for a, v in zip(p, values)) / sum(p)) for d in range(width)]
        out.append(w.product(name + "o_proj.weight", row))
    return out


def experts(w, cfg, layer, position, x):
    name = "model.layers.%d.mlp." % layer
    logits = [sum(a * b for a, b in zip(row, x)) for row in w.matrix(name + "gate.weight")]
    chosen = sorted(sorted(range(len(logits)), key=lambda e: (-logits[e], e))[: cfg["num_experts_per_tok"]])
    print("e", position, layer, *chosen)
    p = [math.exp(logits[e] - max(logits)) for e in chosen]
    acc = [0.0] * len(x)
    for gate, e in zip((v / sum(p) for v in p), chosen):
        g = w.product(name + "experts.%d.gate_proj.weight" % e, x)
        u = w.product(name + "experts.%d.up_proj.weight" % e, x)
        mid = [single(a / (1 + math.exp(-a)) * b) for a, b in zip(g, u)]
        y = [bf16(v) for v in w.product(name + "experts.%d.down_proj.weight" % e, mid)]
        acc = [a + gate * b for a, b in zip(acc, y)]
    return acc


def main():
    folder, ids = sys.argv[1], [int(a) for a in sys.argv[2:]]
    with open(os.path.join(folder, "config.json")) as f:
        cfg = json.load(f)
    assert cfg["model_type"] == "qwen3_moe" and cfg["norm_topk_prob"] and not cfg["tie_word_embeddings"]
    w, eps = Weights(folder), cfg["rms_norm_eps"]
    embedding = w.matrix("model.embed_tokens.weight")
    hidden = [list(embedding[i]) for i in ids]
    for layer in range(cfg["num_hidden_layers"]):
        name = "model.layers.%d." % layer
        norm = w.matrix(name + "input_layernorm.weight")
        attended = attention(w, cfg, layer, [rmsnorm(x, norm, eps) for x in hidden])
        hidden = [[single(a + b) for a, b in zip(x, y)] for x, y in zip(hidden, attended)]
        norm = w.matrix(name + "post_attention_layernorm.weight")
        for position, x in enumerate(hidden):
            y = experts(w, cfg, layer, position, rmsnorm(x, norm, eps))
            hidden[position] = [single(a + b) for a, b in zip(x, y)]
    norm = w.matrix("model.norm.weight")
    for position, x in enumerate(hidden):
        print("l", position, *("%.9g" % v for v in w.product("lm_head.weight", rmsnorm(x, norm, eps))))


if __name__ == "__main__":
    main()
