"""Makes this folder's model.safetensors: a random Qwen3-MoE whose second layer is dense. The recipe, the logits and
the greedy continuation in test_golden.c are those of the public repository basaanithanaveenkumar/Hale-Token
(tests/fixtures/tiny-qwen3-moe), computed there in double by its author's own program. Needs numpy."""

import json
import struct

import numpy as np

H, F, DENSE, E, VOCAB, HEADS, KV, WIDTH = 64, 32, 64, 8, 272, 4, 2, 32
rng = np.random.default_rng(1234)
tensors = {}


def matrix(name, rows, cols, scale=None):
    scale = 1 / np.sqrt(cols) if scale is None else scale
    tensors[name] = (rng.standard_normal(rows * cols) * scale).reshape(rows, cols).astype("<f4")


def vector(name, n):
    tensors[name] = (1 + 0.1 * rng.standard_normal(n)).astype("<f4")


def mlp(name, width):
    matrix(name + "gate_proj.weight", width, H)
    matrix(name + "up_proj.weight", width, H)
    matrix(name + "down_proj.weight", H, width)


matrix("model.embed_tokens.weight", VOCAB, H, 1)
matrix("lm_head.weight", VOCAB, H, 3 / 8)
vector("model.norm.weight", H)
for layer in range(3):
    name = "model.layers.%d." % layer
    vector(name + "input_layernorm.weight", H)
    vector(name + "post_attention_layernorm.weight", H)
    matrix(name + "self_attn.q_proj.weight", HEADS * WIDTH, H)
    matrix(name + "self_attn.k_proj.weight", KV * WIDTH, H)
    matrix(name + "self_attn.v_proj.weight", KV * WIDTH, H)
    matrix(name + "self_attn.o_proj.weight", H, HEADS * WIDTH)
    vector(name + "self_attn.q_norm.weight", WIDTH)
    vector(name + "self_attn.k_norm.weight", WIDTH)
    if layer == 1:
        mlp(name + "mlp.", DENSE)
        continue
    matrix(name + "mlp.gate.weight", E, H, 2 / 8)
    for expert in range(E):
        mlp(name + "mlp.experts.%d." % expert, F)

header, at = {}, 0
for name, t in tensors.items():
    header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
    at += t.nbytes
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open("model.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text + b"".join(t.tobytes() for t in tensors.values()))
