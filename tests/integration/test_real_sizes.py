"""Models of their real sizes: sparse files with the real names, shapes, types and numbers of shards, and no weights. They open, and
are planned and placed, by their headers alone.

    tests/integration/test_real_sizes.py            tests
    tests/integration/test_real_sizes.py --table    what each takes, as README.md has it
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from cluster import BIN, run_tests, wait_for

BYTES = {"BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1}


def gqa(layer, c):
    d, q, kv = c["hidden_size"], c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    a = f"model.layers.{layer}.self_attn."
    yield from ((a + "q_proj.weight", [q, d]), (a + "k_proj.weight", [kv, d]), (a + "v_proj.weight", [kv, d]), (a + "o_proj.weight", [d, q]))
    if c["model_type"] == "qwen3_moe":
        yield from ((a + "q_norm.weight", [c["head_dim"]]), (a + "k_norm.weight", [c["head_dim"]]))
    if c["model_type"] == "olmoe":
        yield from ((a + "q_norm.weight", [q]), (a + "k_norm.weight", [kv]))
    if c.get("attention_bias"):
        yield from ((a + "q_proj.bias", [q]), (a + "k_proj.bias", [kv]), (a + "v_proj.bias", [kv]))
    if c["model_type"] == "gpt_oss":
        yield from ((a + "o_proj.bias", [d]), (a + "sinks", [c["num_attention_heads"]]))


def latent(layer, c):
    d, h, nope, rope, v = (c[k] for k in ("hidden_size", "num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    a, kv = f"model.layers.{layer}.self_attn.", c["kv_lora_rank"]
    if c["q_lora_rank"]:
        r = c["q_lora_rank"]
        yield from ((a + "q_a_proj.weight", [r, d]), (a + "q_a_layernorm.weight", [r]), (a + "q_b_proj.weight", [h * (nope + rope), r]))
    else:
        yield a + "q_proj.weight", [h * (nope + rope), d]
    yield from ((a + "kv_a_proj_with_mqa.weight", [kv + rope, d]), (a + "kv_a_layernorm.weight", [kv]),
                (a + "kv_b_proj.weight", [h * (nope + v), kv]), (a + "o_proj.weight", [d, h * v]))


def mlp(prefix, d, width):
    yield from ((prefix + "gate_proj.weight", [width, d]), (prefix + "up_proj.weight", [width, d]), (prefix + "down_proj.weight", [d, width]))


def feed_forward(layer, c):
    d, kind = c["hidden_size"], c["model_type"]
    e = c.get("n_routed_experts") or c.get("num_experts") or c.get("num_local_experts")
    if layer < c.get("first_k_dense_replace", 0):
        yield from mlp(f"model.layers.{layer}.mlp.", d, c["intermediate_size"])
        return
    width = c.get("moe_intermediate_size", c["intermediate_size"])
    if kind == "mixtral":
        m = f"model.layers.{layer}.block_sparse_moe."
        yield m + "gate.weight", [e, d]
        for i in range(e):
            yield from ((f"{m}experts.{i}.w1.weight", [width, d]), (f"{m}experts.{i}.w2.weight", [d, width]), (f"{m}experts.{i}.w3.weight", [width, d]))
        return
    m = f"model.layers.{layer}.mlp."
    if kind == "gpt_oss":
        x = m + "experts."
        yield from ((m + "router.weight", [e, d]), (m + "router.bias", [e]), (x + "gate_up_proj_blocks", [e, 2 * width, d // 32, 16]),
                    (x + "gate_up_proj_scales", [e, 2 * width, d // 32]), (x + "gate_up_proj_bias", [e, 2 * width]),
                    (x + "down_proj_blocks", [e, d, width // 32, 16]), (x + "down_proj_scales", [e, d, width // 32]), (x + "down_proj_bias", [e, d]))
        return
    yield m + "gate.weight", [e, d]
    if kind in ("deepseek_v3", "glm4_moe"):
        yield m + "gate.e_score_correction_bias", [e]
    for i in range(e):
        yield from mlp(f"{m}experts.{i}.", d, width)
    if c.get("n_shared_experts"):
        yield from mlp(m + "shared_experts.", d, width * c["n_shared_experts"])


def layer_tensors(layer, c):
    yield f"model.layers.{layer}.input_layernorm.weight", [c["hidden_size"]]
    yield f"model.layers.{layer}.post_attention_layernorm.weight", [c["hidden_size"]]
    yield from (latent if "kv_lora_rank" in c else gqa)(layer, c)
    yield from feed_forward(layer, c)


def tensors(c):
    """(name, dtype, shape), multi-token prediction included; scales of fp8 follow their matrix."""
    d, v = c["hidden_size"], c["vocab_size"]
    shapes = [("model.embed_tokens.weight", [v, d]), ("lm_head.weight", [v, d]), ("model.norm.weight", [d])]
    n = c["num_hidden_layers"]
    for layer in range(n + c.get("num_nextn_predict_layers", 0)):
        shapes += layer_tensors(layer, c)
        if layer >= n:
            p = f"model.layers.{layer}."
            shapes += [(p + "embed_tokens.weight", [v, d]), (p + "shared_head.head.weight", [v, d]), (p + "shared_head.norm.weight", [d]),
                       (p + "enorm.weight", [d]), (p + "hnorm.weight", [d]), (p + "eh_proj.weight", [d, 2 * d])]
    fp8 = "quantization_config" in c and c["quantization_config"]["quant_method"] == "fp8"
    for name, shape in shapes:
        small = len(shape) == 1 or any(s in name for s in ("embed", "head", ".gate.weight", "eh_proj"))
        if name.endswith(("_blocks", "_scales")):
            yield name, "U8", shape
        elif fp8 and not small:
            yield name, "F8_E4M3", shape
            yield name + "_scale_inv", "F32", [(s + 127) // 128 for s in shape]
        else:
            yield name, "F32" if name.endswith("correction_bias") else "BF16", shape


def count(shape):
    n = 1
    for s in shape:
        n *= s
    return n


def write(folder, c, shards):
    """The folder; how many parameters of the model itself there are, and bytes of all tensors."""
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16", "hidden_act": "silu",
                                                    "max_position_embeddings": 4096, **c}))
    every = list(tensors(c))
    total = sum(count(s) * BYTES[t] for _, t, s in every)
    files, used, weight_map = [[]], 0, {}
    for name, dtype, shape in every:
        size = count(shape) * BYTES[dtype]
        if used > 0 and used + size / 2 > total / shards and len(files) < shards:
            files.append([])
            used = 0
        files[-1].append((name, dtype, shape, size))
        used += size
    for i, names in enumerate(files):
        header, at = {}, 0
        for name, dtype, shape, size in names:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
            weight_map[name] = f"model-{i + 1:05}-of-{len(files):06}.safetensors"
        text = json.dumps(header).encode()
        with open(folder / weight_map[names[0][0]], "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            f.truncate(8 + len(text) + at)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    n = c["num_hidden_layers"]
    own = [(name, t, s) for name, t, s in every if not name.startswith(f"model.layers.{n}.") and not name.endswith(("scale_inv", "_scales"))]
    return sum(count(s) * (2 if t == "U8" else 1) for _, t, s in own), total, len(files)


V3 = dict(model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"], hidden_size=7168, num_hidden_layers=61, vocab_size=129280, num_attention_heads=128,
          num_key_value_heads=128, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, intermediate_size=18432,
          moe_intermediate_size=2048, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=3, n_group=8, topk_group=4,
          routed_scaling_factor=2.5, norm_topk_prob=True, scoring_func="sigmoid", topk_method="noaux_tc", num_nextn_predict_layers=1,
          quantization_config={"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]})
MIXTRAL = dict(model_type="mixtral", architectures=["MixtralForCausalLM"], hidden_size=4096, num_hidden_layers=32, vocab_size=32000, num_attention_heads=32,
               num_key_value_heads=8, head_dim=128, intermediate_size=14336, num_local_experts=8, num_experts_per_tok=2)
QWEN3 = dict(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], hidden_size=2048, num_hidden_layers=48, vocab_size=151936, num_attention_heads=32,
             num_key_value_heads=4, head_dim=128, intermediate_size=6144, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True)
GPT = dict(model_type="gpt_oss", architectures=["GptOssForCausalLM"], hidden_size=2880, num_hidden_layers=36, vocab_size=201088, num_attention_heads=64,
           num_key_value_heads=8, head_dim=64, intermediate_size=2880, num_local_experts=128, num_experts_per_tok=4, attention_bias=True, sliding_window=128,
           swiglu_limit=7.0, quantization_config={"quant_method": "mxfp4"})
GLM = dict(model_type="glm4_moe", architectures=["Glm4MoeForCausalLM"], hidden_size=4096, num_hidden_layers=46, vocab_size=151552, num_attention_heads=96,
           num_key_value_heads=8, head_dim=128, partial_rotary_factor=0.5, attention_bias=True, intermediate_size=10944, moe_intermediate_size=1408,
           n_routed_experts=128, n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=1, n_group=1, topk_group=1, num_nextn_predict_layers=1)
# name -> config, shards of the published files, parameters in thousands of millions as published: all, and active (gpt-oss' publisher
# leaves the embedding out of these, it is in here)
MODELS = {
    "Mixtral-8x7B": (MIXTRAL, 19, 46.7, 12.9),
    "Mixtral-8x22B": ({**MIXTRAL, "hidden_size": 6144, "num_hidden_layers": 56, "num_attention_heads": 48, "intermediate_size": 16384}, 59, 141, 39),
    "DeepSeek-V2-Lite": ({k: v for k, v in V3.items() if k not in ("quantization_config", "num_nextn_predict_layers")} |
                         dict(model_type="deepseek_v2", architectures=["DeepseekV2ForCausalLM"], hidden_size=2048, num_hidden_layers=27, vocab_size=102400,
                              num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None, intermediate_size=10944, moe_intermediate_size=1408, n_routed_experts=64,
                              n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1, n_group=1, topk_group=1, routed_scaling_factor=1.0,
                              norm_topk_prob=False, scoring_func="softmax", topk_method="greedy"), 4, 15.7, 2.7),
    "DeepSeek-V3 (FP8)": (V3, 163, 671, 38),
    "Qwen3-30B-A3B": (QWEN3, 16, 30.5, 3.3),
    "Qwen3-235B-A22B": ({**QWEN3, "hidden_size": 4096, "num_hidden_layers": 94, "num_attention_heads": 64, "moe_intermediate_size": 1536}, 118, 235, 22),
    "OLMoE-1B-7B": (dict(model_type="olmoe", architectures=["OlmoeForCausalLM"], hidden_size=2048, num_hidden_layers=16, vocab_size=50304,
                         num_attention_heads=16, num_key_value_heads=16, head_dim=128, intermediate_size=1024, num_experts=64, num_experts_per_tok=8), 3, 6.9, 1.3),
    "gpt-oss-20b (MXFP4)": ({**GPT, "num_hidden_layers": 24, "num_local_experts": 32}, 3, 20.9, 4.2),
    "gpt-oss-120b (MXFP4)": (GPT, 15, 116.8, 5.7),
    "GLM-4.5-Air": (GLM, 47, 106, 12),
}


def inspect(folder, *options):
    done = subprocess.run([BIN / "moesaic", "inspect", folder, "--json", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_real_sizes_open_and_are_planned():
    for name, (config, shards, published, published_active) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            own, total, files = write(pathlib.Path(folder), config, shards)
            began = time.monotonic()
            r = inspect(folder, "--nodes=8")
            seconds = time.monotonic() - began
            p = r["parameters"]
            assert files == shards and r["family"] == config["model_type"], (name, files, r["family"])
            assert p["total"] == own, f"{name}: {p['total']} parameters, its tensors have {own}"
            assert abs(p["total"] / 1e9 / published - 1) < 0.02, f"{name}: {p['total'] / 1e9:.1f} B, published are {published} B"
            assert abs(p["active"] / 1e9 / published_active - 1) < 0.12, f"{name}: {p['active'] / 1e9:.1f} B active, published are {published_active} B"
            assert r["file_bytes"] > total > 0 and len(r["nodes"]) == 8
            held = [n["experts"] for n in r["nodes"]]
            assert sum(held) == r["size"]["moe_layers"] * r["size"]["experts"] and max(held) - min(held) <= r["size"]["moe_layers"], (name, held)
            print(f"  {name}: {files} files, {total / 1e9:.0f} GB, {p['total'] / 1e9:.1f} B parameters, {p['active'] / 1e9:.1f} B active; read in {seconds:.1f} s")


def test_a_node_opens_the_largest_and_waits():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write(folder, V3, 163)
        with open(folder / "log", "w+") as log:
            node = subprocess.Popen([BIN / "moesaic-node", folder, "--listen", "127.0.0.1:0"], stdout=log, stderr=log)
            try:
                said = folder / "log"
                wait_for("the node", lambda: "waits for a coordinator" in said.read_text() or node.poll() is not None, 60)
                assert node.poll() is None, said.read_text()
                resident = int(next(line for line in open(f"/proc/{node.pid}/status") if line.startswith("VmRSS")).split()[1])
                print(f"  {resident / 1024:.0f} MiB resident")
                assert resident < 1 << 20, "headers alone"
            finally:
                node.send_signal(signal.SIGTERM)
                assert node.wait(30) == 0
        lost = folder / "model-00100-of-000163.safetensors"
        lost.unlink()
        done = subprocess.run([BIN / "moesaic", "inspect", folder], capture_output=True, text=True)
        assert done.returncode == 4 and lost.name in done.stderr, done.stderr


def table():
    print("| model | files | parameters (active) | coordinator | experts: in all, each of 4, of 8 nodes | keys and values per token |\n"
          "| --- | --- | --- | --- | --- | --- |")
    gib = 1 << 30
    for name, (config, shards, _, _) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(pathlib.Path(folder), config, shards)
            r = {n: inspect(folder, f"--nodes={n}") for n in (4, 8)}
            of = {n: [x["weight_bytes"] for x in r[n]["nodes"]] for n in r}
            p, c = r[4]["parameters"], r[4]["coordinator"]
            print(f"| {name} | {r[4]['file_bytes'] / gib:.0f} GiB in {shards} | {p['total'] / 1e9:.1f} B ({p['active'] / 1e9:.1f} B) | {c['weight_bytes'] / gib:.1f} GiB | "
                  f"{sum(of[4]) / gib:.0f}, {max(of[4]) / gib:.1f}, {max(of[8]) / gib:.1f} GiB | {c['kv_bytes_per_token'] / 1024:.1f} KiB |")


if sys.argv[1:] == ["--table"]:
    table()
else:
    run_tests([test_real_sizes_open_and_are_planned, test_a_node_opens_the_largest_and_waits])
