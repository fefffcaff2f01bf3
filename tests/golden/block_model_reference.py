"""A whole Qwen3-MoE model in block formats, written again from the definitions: products in exact fractions
(q8_reference.py, blocks_reference.py), everything between them in double, rounded to f32 or bf16 where the definitions round.
Only the standard library; one prompt, no cache. Slow: for the tiny models.

    block_model_reference.py MODEL ID [ID ...]        a folder: with --quantize q8_0; a GGUF file: as it is

prints per position and layer   e POSITION LAYER EXPERT...     (ascending)
and per position                l POSITION LOGIT...            (%.9g)
"""

import json
import math
import os
import struct
import sys

import blocks_reference
from q8_reference import bits, from_bits, matvec, q8_0_blocks, quantize_row


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

    def embedding(self, i):
        return list(self.matrix("model.embed_tokens.weight")[i])

    def product(self, name, x):
        if name not in self.rows:
            self.rows[name] = [q8_0_blocks(row) for row in self.matrix(name)]
        return matvec(self.rows[name], x)


GGUF_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
              "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "input_layernorm": "attn_norm",
              "post_attention_layernorm": "ffn_norm", "mlp.gate": "ffn_gate_inp"}
GGUF_TYPES = {0: "F32", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 39: "MXFP4"}
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Gguf:
    """The same of a GGUF file, whose blocks are multiplied as they are."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.raw = f.read()
        self.at = 8
        n_tensors, n_pairs = self.take("QQ")
        self.facts = dict((self.text(), self.value(*self.take("I"))) for _ in range(n_pairs))
        self.tensors = {}
        for _ in range(n_tensors):
            name, (n,) = self.text(), self.take("I")
            shape = list(reversed(self.take("%dQ" % n)))
            kind, offset = self.take("IQ")
            self.tensors[name] = (shape, GGUF_TYPES[kind], offset)
        align = self.facts.get("general.alignment", 32)
        self.begin = -(-self.at // align) * align

    def take(self, form):
        out = struct.unpack_from("<" + form, self.raw, self.at)
        self.at += struct.calcsize("<" + form)
        return out

    def text(self):
        (n,) = self.take("Q")
        self.at += n
        return self.raw[self.at - n : self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            of, n = self.take("IQ")
            return [self.value(of) for _ in range(n)]
        return self.take(SCALARS[kind])[0]

    def config(self):
        at = lambda key: self.facts["qwen3moe." + key]
        return {"model_type": "qwen3_moe", "norm_topk_prob": True, "tie_word_embeddings": "output.weight" not in self.tensors,
                "num_hidden_layers": at("block_count"), "head_dim": at("attention.key_length"), "rms_norm_eps": at("attention.layer_norm_rms_epsilon"),
                "num_attention_heads": at("attention.head_count"), "num_key_value_heads": at("attention.head_count_kv"),
                "rope_theta": at("rope.freq_base"), "num_experts_per_tok": at("expert_used_count")}

    def find(self, name):
        """Shape, type and bytes of a matrix or vector by its name in safetensors; rows of one expert."""
        outer = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight", "model.norm.weight": "output_norm.weight"}
        expert = None
        if name in outer:
            name = outer[name]
        else:
            _, _, layer, rest = name.removesuffix(".weight").split(".", 3)
            if rest.startswith("mlp.experts."):
                _, _, expert, part = rest.split(".")
                name = "blk.%s.ffn_%s_exps.weight" % (layer, part.removesuffix("_proj"))
            else:
                name = "blk.%s.%s.weight" % (layer, GGUF_NAMES[rest])
        shape, kind, offset = self.tensors[name]
        elements, size = (1, 4) if kind == "F32" else blocks_reference.TYPES[kind][:2]
        if expert is not None:
            shape = shape[1:]
        n = math.prod(shape) // elements * size
        begin = self.begin + offset + (int(expert) * n if expert is not None else 0)
        return shape, kind, self.raw[begin : begin + n]

    def row(self, kind, data):
        if kind == "F32":
            return list(struct.unpack("<%df" % (len(data) // 4), data))
        return [single(float(w * scale + (low or 0))) for weights, scale, low in blocks_reference.parts(kind, list(data)) for w in weights]

    def rows(self, name):
        shape, kind, data = self.find(name)
        size = len(data) // (shape[0] if len(shape) > 1 else 1)
        return kind, [data[i : i + size] for i in range(0, len(data), size)]

    def matrix(self, name):
        kind, rows = self.rows(name)
        out = [self.row(kind, r) for r in rows]
        return out if len(self.find(name)[0]) > 1 else out[0]

    def embedding(self, i):
        kind, rows = self.rows("model.embed_tokens.weight")
        return self.row(kind, rows[i])

    def product(self, name, x):
        kind, rows = self.rows(name)
        q, d = quantize_row(x)
        return [float(blocks_reference.matvec(kind, list(r), q, d)) for r in rows]


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
    if folder.endswith(".gguf"):
        w = Gguf(folder)
        cfg = w.config()
    else:
        w = Weights(folder)
        with open(os.path.join(folder, "config.json")) as f:
            cfg = json.load(f)
    assert cfg["model_type"] == "qwen3_moe" and cfg["norm_topk_prob"] and not cfg["tie_word_embeddings"]
    eps = cfg["rms_norm_eps"]
    hidden = [w.embedding(i) for i in ids]
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
