"""Write a random model in the on-disk layout of Qwen3-MoE: for tests that need sizes no tiny checkpoint has.

    python3 make_model.py DIR --hidden 2080 --width 1056 --experts 64 --layers 1 --dtype bf16

Weights are bf16 (or f32) of magnitude 2^-7..2^-5, from a fixed seed: the same arguments write the same bytes. The
tokenizer is that of deploy/demo. Standard library only.
"""
import argparse
import json
import pathlib
import random
import shutil
import struct

HIGH = bytes(0xBC if i & 1 else 0x3C for i in range(256))  # sign and exponent of a small number, by a random bit


def small_bf16(rng, n):
    out = bytearray(2 * n)
    out[0::2] = rng.randbytes(n)
    out[1::2] = rng.randbytes(n).translate(HIGH)
    return out


def write(folder, hidden, width, experts, layers, heads, kv_heads, head_dim, top_k, vocab, ctx, seed):
    folder.mkdir(parents=True, exist_ok=True)
    demo = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "demo"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder / name)
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": vocab, "hidden_size": hidden,
              "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
              "intermediate_size": width, "moe_intermediate_size": width, "num_experts": experts,
              "num_experts_per_tok": top_k, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
              "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": ctx,
              "attention_bias": False, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_sliding_window": False,
              "bos_token_id": None, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for l in range(layers):
        p = f"model.layers.{l}."
        shapes |= {p + "input_layernorm.weight": (hidden,), p + "post_attention_layernorm.weight": (hidden,),
                   p + "self_attn.q_proj.weight": (heads * head_dim, hidden), p + "self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
                   p + "self_attn.v_proj.weight": (kv_heads * head_dim, hidden), p + "self_attn.o_proj.weight": (hidden, heads * head_dim),
                   p + "self_attn.q_norm.weight": (head_dim,), p + "self_attn.k_norm.weight": (head_dim,),
                   p + "mlp.gate.weight": (experts, hidden)}
        for e in range(experts):
            shapes |= {p + f"mlp.experts.{e}.{n}_proj.weight": (hidden, width) if n == "down" else (width, hidden)
                       for n in ("gate", "up", "down")}
    header, at = {}, 0
    for name, shape in shapes.items():
        n = 1
        for d in shape:
            n *= d
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * n]}
        at += 2 * n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = random.Random(seed)
    with open(folder / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, t in header.items():
            n = (t["data_offsets"][1] - t["data_offsets"][0]) // 2
            f.write(b"\x80\x3f" * n if name.endswith("norm.weight") else small_bf16(rng, n))


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("folder", type=pathlib.Path)
    for name, value in (("hidden", 2080), ("width", 1056), ("experts", 64), ("layers", 1), ("heads", 8), ("kv-heads", 2),
                        ("head-dim", 64), ("top-k", 4), ("vocab", 4096), ("ctx", 4096), ("seed", 1)):
        a.add_argument(f"--{name}", type=int, default=value)
    o = a.parse_args()
    write(o.folder, o.hidden, o.width, o.experts, o.layers, o.heads, o.kv_heads, o.head_dim, o.top_k, o.vocab, o.ctx, o.seed)
