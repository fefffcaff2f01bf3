#!/usr/bin/env python3
"""Perplexity of the demonstration model with its weights in each format that is computed with.

    tests/bench/perplexity.py [--text FILE] [--windows N] [FORMAT...]      (default text: the tales, from MOESAIC_SHARED/corpus)

The matrices of attention and experts are in the format (rounded to nearest here, with no calibration; what a block of 256 does not fit
has the next simpler format, as converters do it), the embedding and the head that is tied to it in bf16, router and norms in f32. Every
window is asked of a coordinator as token ids; the second half of it counts. Standard library only.
"""
import argparse
import array
import concurrent.futures
import json
import lzma
import math
import os
import pathlib
import struct
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integration"))
from cluster import DEMO, Cluster  # noqa: E402

WINDOW = 256


def half(x):
    return struct.pack("<e", x)


def unhalf(b):
    return struct.unpack("<e", b)[0]


def clamp(x, low, high):
    return low if x < low else high if x > high else x


def nearest(x):
    return math.floor(x + 0.5)


def nibbles(q):
    return bytes(q[i] | q[i + 16] << 4 for i in range(16))


def fifth_bits(q):
    return sum((v >> 4) << i for i, v in enumerate(q)).to_bytes(4, "little")


def q8_0(x):
    d = half(max(map(abs, x)) / 127)
    inverse = 1 / unhalf(d) if unhalf(d) else 0
    return d + struct.pack("32b", *(clamp(nearest(v * inverse), -127, 127) for v in x))


def symmetric(levels):
    def block(x):
        d = half(max(x, key=abs) / -levels)
        inverse = 1 / unhalf(d) if unhalf(d) else 0
        q = [clamp(nearest(v * inverse) + levels, 0, 2 * levels - 1) for v in x]
        return d + (fifth_bits(q) if levels == 16 else b"") + nibbles([v & 15 for v in q])
    return block


def with_minimum(levels):
    def block(x):
        low, d = half(min(x)), half((max(x) - min(x)) / levels)
        inverse = 1 / unhalf(d) if unhalf(d) else 0
        q = [clamp(nearest((v - unhalf(low)) * inverse), 0, levels) for v in x]
        return d + low + (fifth_bits(q) if levels == 31 else b"") + nibbles([v & 15 for v in q])
    return block


def k_with_minimum(levels):
    """Q4_K, Q5_K: eight parts of 32, their scales and minima in six bits."""
    def block(x):
        parts = [x[i:i + 32] for i in range(0, 256, 32)]
        lows = [max(0.0, -min(p)) for p in parts]
        scales = [(max(p) + low) / levels for p, low in zip(parts, lows)]
        d, dmin = half(max(scales) / 63), half(max(lows) / 63)
        fd, fm = unhalf(d), unhalf(dmin)
        ls = [clamp(nearest(s / fd), 0, 63) if fd else 0 for s in scales]
        lm = [clamp(nearest(m / fm), 0, 63) if fm else 0 for m in lows]
        q = [[clamp(nearest((v + fm * m) / (fd * s)), 0, levels) if fd * s else 0 for v in p] for p, s, m in zip(parts, ls, lm)]
        packed = [ls[j] | (ls[j + 4] >> 4) << 6 for j in range(4)] + [lm[j] | (lm[j + 4] >> 4) << 6 for j in range(4)]
        packed += [(ls[j] & 15) | (lm[j] & 15) << 4 for j in range(4, 8)]
        codes = bytes((q[j][i] & 15) | (q[j + 1][i] & 15) << 4 for j in range(0, 8, 2) for i in range(32))
        high = bytes(sum((q[j][i] >> 4) << j for j in range(8)) for i in range(32)) if levels == 31 else b""
        return d + dmin + bytes(packed) + high + codes
    return block


def q6_k(x):
    parts = [x[i:i + 16] for i in range(0, 256, 16)]
    scales = [max(p, key=abs) / -32 for p in parts]
    d = half(max(map(abs, scales)) / 127)
    fd = unhalf(d)
    s = [clamp(nearest(v / fd), -127, 127) if fd else 0 for v in scales]
    q = [clamp(nearest(v / (fd * s[i // 16])), -32, 31) + 32 if fd * s[i // 16] else 32 for i, v in enumerate(x)]
    low, high = bytearray(), bytearray()
    for n in (0, 128):
        a, b, c, e = (q[n + k:n + k + 32] for k in (0, 32, 64, 96))
        low += bytes((v & 15) | (w & 15) << 4 for v, w in zip(a, c)) + bytes((v & 15) | (w & 15) << 4 for v, w in zip(b, e))
        high += bytes(v >> 4 | (w >> 4) << 2 | (y >> 4) << 4 | (z >> 4) << 6 for v, w, y, z in zip(a, b, c, e))
    return bytes(low) + bytes(high) + struct.pack("16b", *s) + d


def bf16(x):
    bits = array.array("I", array.array("f", x).tobytes())
    return array.array("H", ((b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in bits)).tobytes()


# format -> GGUF's number of the type, numbers in a block, block -> bytes, and what rows take that the block does not divide
FORMATS = {
    "F32": (0, 1, lambda x: array.array("f", x).tobytes(), None),
    "F16": (1, 1, lambda x: struct.pack(f"<{len(x)}e", *x), None),
    "BF16": (30, 1, bf16, None),
    "Q8_0": (8, 32, q8_0, None),
    "Q6_K": (14, 256, q6_k, "Q8_0"),
    "Q5_K": (13, 256, k_with_minimum(31), "Q5_1"),
    "Q5_1": (7, 32, with_minimum(31), None),
    "Q5_0": (6, 32, symmetric(16), None),
    "Q4_K": (12, 256, k_with_minimum(15), "Q5_0"),
    "Q4_1": (3, 32, with_minimum(15), None),
    "Q4_0": (2, 32, symmetric(8), None),
    "MXFP4": (None, 32, None, None),     # by --quantize at load
    "FP8": (None, 128, None, None),      # as safetensors, scales of 128 x 128
}
E4M3 = sorted(((1 + m / 8) * 2.0 ** (e - 7) if e else m / 8 * 2.0 ** -6, e << 3 | m) for e in range(16) for m in range(8) if (e, m) != (15, 7))


def encode_row(row, name):
    kind, block, encode, simpler = FORMATS[name]
    if len(row) % block != 0:
        return encode_row(row, simpler)
    if block == 1:
        return kind, encode(row)
    return kind, b"".join(encode(row[i:i + block]) for i in range(0, len(row), block))


def encode_matrix(values, columns, name):
    kind, out = 0, []
    for i in range(0, len(values), columns):
        kind, data = encode_row(values[i:i + columns], name)
        out.append(data)
    return kind, b"".join(out)


def e4m3(x):
    size, low, high = abs(x), 0, len(E4M3)
    while high - low > 1:
        mid = (low + high) // 2
        low, high = (mid, high) if E4M3[mid][0] <= size else (low, mid)
    if low + 1 < len(E4M3) and E4M3[low + 1][0] - size < size - E4M3[low][0]:
        low += 1
    return E4M3[low][1] | (128 if x < 0 else 0)


def fp8_matrix(values, columns):
    rows = len(values) // columns
    tiles = [[0.0] * -(-columns // 128) for _ in range(-(-rows // 128))]
    for r in range(rows):
        for t in range(len(tiles[0])):
            part = values[r * columns + t * 128:r * columns + min(columns, t * 128 + 128)]
            tiles[r // 128][t] = max(tiles[r // 128][t], max(map(abs, part)) / 448)
    scales = array.array("f", [s or 1.0 for line in tiles for s in line])
    codes = bytes(e4m3(values[i] / scales[i // columns // 128 * len(tiles[0]) + i % columns // 128]) for i in range(len(values)))
    return codes, scales, [len(tiles), len(tiles[0])]


def read_model(path):
    """name -> shape, numbers; all of the model is bf16."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    for name, t in json.loads(raw[8:8 + n]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + n + x for x in t["data_offsets"])
        assert t["dtype"] == "BF16", name
        yield name, t["shape"], array.array("f", array.array("I", (h << 16 for h in array.array("H", raw[begin:end]))).tobytes())


GGUF_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
              "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "input_layernorm": "attn_norm",
              "post_attention_layernorm": "ffn_norm", "mlp.gate": "ffn_gate_inp"}


def gguf_tensors(tensors, config):
    """(name, shape, numbers, is it in the format), experts stacked."""
    yield "token_embd.weight", *tensors["model.embed_tokens.weight"], "BF16"
    yield "output_norm.weight", *tensors["model.norm.weight"], "F32"
    for layer in range(config["num_hidden_layers"]):
        for hf, gguf in GGUF_NAMES.items():
            shape, values = tensors[f"model.layers.{layer}.{hf}.weight"]
            yield f"blk.{layer}.{gguf}.weight", shape, values, None if gguf in ("attn_q", "attn_k", "attn_v", "attn_output") else "F32"
        for part in ("gate", "up", "down"):
            every = [tensors[f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight"] for e in range(config["num_experts"])]
            values = array.array("f")
            for _, v in every:
                values += v
            yield f"blk.{layer}.ffn_{part}_exps.weight", [len(every), *every[0][0]], values, None


def text(s):
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def metadata(config, tokenizer):
    arch = "qwen3moe."
    numbers = {"block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"], "embedding_length": config["hidden_size"],
               "feed_forward_length": config["intermediate_size"], "attention.head_count": config["num_attention_heads"],
               "attention.head_count_kv": config["num_key_value_heads"], "expert_count": config["num_experts"],
               "expert_used_count": config["num_experts_per_tok"], "attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"],
               "expert_feed_forward_length": config["moe_intermediate_size"]}
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("qwen3moe")]
    pairs += [text(arch + k) + struct.pack("<II", 4, v) for k, v in numbers.items()]
    pairs += [text(arch + k) + struct.pack("<If", 6, v) for k, v in
              {"rope.freq_base": config["rope_theta"], "attention.layer_norm_rms_epsilon": config["rms_norm_eps"]}.items()]
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {t["id"] for t in tokenizer["added_tokens"]}
    merges = [" ".join(m) for m in tokenizer["model"]["merges"]]
    pairs += [text("tokenizer.ggml." + k) + struct.pack("<I", 8) + text(v) for k, v in {"model": "gpt2", "pre": "qwen2"}.items()]
    pairs.append(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(tokens)) + b"".join(map(text, tokens)))
    pairs.append(text("tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, len(tokens)) +
                 array.array("i", (3 if i in special else 1 for i in range(len(tokens)))).tobytes())
    pairs.append(text("tokenizer.ggml.merges") + struct.pack("<IIQ", 9, 8, len(merges)) + b"".join(map(text, merges)))
    pairs.append(text("tokenizer.ggml.eos_token_id") + struct.pack("<II", 4, config["eos_token_id"]))
    return pairs


def write_gguf(path, name, tensors, config, tokenizer):
    infos, data = [], bytearray()
    for tensor, shape, values, fixed in gguf_tensors(tensors, config):
        kind, raw = encode_matrix(values, shape[-1], fixed or name)
        infos.append(text(tensor) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(data)))
        data += raw + bytes(-len(raw) % 32)
    pairs = metadata(config, tokenizer)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def write_fp8(folder, tensors, config):
    header, data = {}, bytearray()

    def add(name, dtype, shape, raw):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data.extend(raw)

    for name, (shape, values) in tensors.items():
        if len(shape) == 1 or "embed" in name or name.endswith("mlp.gate.weight"):
            add(name, "BF16", shape, bf16(values))
            continue
        codes, scales, tiles = fp8_matrix(values, shape[1])
        add(name, "F8_E4M3", shape, codes)
        add(name + "_scale_inv", "F32", tiles, scales.tobytes())
    text_header = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text_header).to_bytes(8, "little") + text_header + data)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())


def write(folder, name):
    """What `moesaic up` takes for the model in that format."""
    if name == "MXFP4":
        return [DEMO, "--quantize=mxfp4"]
    tensors = {n: (shape, values) for n, shape, values in read_model(DEMO / "model.safetensors")}
    config, tokenizer = (json.loads((DEMO / n).read_text()) for n in ("config.json", "tokenizer.json"))
    folder = pathlib.Path(folder) / name
    folder.mkdir()
    if name == "FP8":
        write_fp8(folder, tensors, config)
        return [folder]
    write_gguf(folder / "model.gguf", name, tensors, config, tokenizer)
    return [folder / "model.gguf"]


def windows_of(tales, n):
    """Token ids of windows from all over the text, by the model's own tokenizer."""
    step = len(tales) // n
    with Cluster(DEMO, nodes=0) as c:
        for i in range(n):
            status, body, _ = c.post("/tokenize", {"content": tales[i * step:i * step + 8 * WINDOW]})
            ids = body["tokens"]
            if len(ids) >= WINDOW:
                yield ids[:WINDOW]


def perplexity(up, windows):
    """exp of the mean loss."""
    loss, n = 0.0, 0
    with Cluster(*up, nodes=0) as c:
        for ids in windows:
            answer = c.complete(prompt=ids, max_tokens=1, temperature=0, echo=True, logprobs=0, ignore_eos=True)
            seen = answer["choices"][0]["logprobs"]["token_logprobs"][WINDOW // 2:WINDOW]
            loss -= math.fsum(seen)
            n += len(seen)
    return math.exp(loss / n)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("formats", nargs="*", default=list(FORMATS), metavar="FORMAT")
    a = parser.parse_args()
    if a.text:
        tales = pathlib.Path(a.text).read_text()
    else:
        shared = pathlib.Path(os.environ.get("MOESAIC_SHARED", ROOT.parent / "shared"))
        tales = lzma.open(shared / "corpus" / "fairy-tales.txt.xz", "rt").read()
    windows = list(windows_of(tales, a.windows))
    wanted = ["F32", *(f for f in a.formats if f != "F32")]
    print(f"{len(windows)} windows of {WINDOW} tokens, the second half of each counts\n\n| format | perplexity | over F32 |\n| --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ProcessPoolExecutor() as pool:
        made = [pool.submit(write, folder, f) for f in wanted]
        base = None
        for name, up in zip(wanted, made):
            p = perplexity(up.result(), windows)
            base = base or p
            print(f"| {name} | {p:.4f} | {100 * (p / base - 1):+.2f} % |", flush=True)


if __name__ == "__main__":
    main()
