"""Truth over HTTP: the official numbers, from a real cluster of three nodes (echo + logprobs), and the same bits as one process."""
import json
import math
import os
import pathlib

from cluster import DATA, DEMO, ROOT, Cluster, read_safetensors, run_tests

TINY = sorted(p.name for p in DATA.glob("tiny-*") if "switch" not in p.name)
SHARED = pathlib.Path(os.environ.get("MOESAIC_SHARED", ROOT.parent / "shared"))
GGUF = ["tiny-mixtral-f32", "tiny-qwen3_moe-f32", "tiny-deepseek_v2-f32", "tiny-deepseek_v3-f32", "tiny-mixtral-f16-split-00001-of-00002", "tiny-gpt_oss-f32",
        "tiny-llama-f16", "tiny-phimoe-f16", "tiny-deepseek_v2-q4_0", "tiny-qwen3_moe-k-q4_k_m"]


def log_softmax(row):
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    return [x - top - math.log(total) for x in row]


def ask_prompts(c, expected, tensors, exact, name):
    """Errors of the logprobs of each prompt's tokens, where the logits before them are known; greedy tokens equal, if exact."""
    errors = []
    for p in expected["prompts"]:
        ids, key = p["ids"], p["key"]
        if f"{key}.logits" not in tensors:
            continue
        greedy = list(tensors[f"{key}.greedy"][1])
        answer = c.complete(prompt=ids, max_tokens=len(greedy), temperature=0, echo=True, logprobs=20, ignore_eos=True, return_token_ids=True)
        choice = answer["choices"][0]
        assert choice["prompt_token_ids"] == ids
        if exact:
            assert choice["token_ids"] == greedy, f"{name} {key}: greedy tokens differ"
        rows = tensors[f"{key}.rows"][1]
        shape, logits = tensors[f"{key}.logits"]
        for r, position in enumerate(rows):
            want = log_softmax(logits[r * shape[1]:(r + 1) * shape[1]])
            # What follows position is the token at position + 1: of the prompt, or the first generated one.
            token = ids[position + 1] if position + 1 < len(ids) else choice["token_ids"][0]
            errors.append(choice["logprobs"]["token_logprobs"][position + 1] - want[token])
        assert choice["logprobs"]["token_logprobs"][0] is None
    return errors


def check_model(name):
    expected = json.loads((DATA / name / "expected.json").read_text())
    tensors = read_safetensors(DATA / name / "expected.safetensors")
    facts = expected["facts"]
    exact = facts["storage"] == "f32"
    with Cluster(DATA / name, nodes=3) as c:
        errors = ask_prompts(c, expected, tensors, exact, name)
    worst, rms = max(abs(e) for e in errors), math.sqrt(sum(e * e for e in errors) / len(errors))
    print(f"  {name}: {len(errors)} logprobs, worst error {worst:.2e}, rms {rms:.2e}", flush=True)
    if exact:
        assert worst <= 2 * expected["tolerance"]["logits"], f"{name}: {worst}"  # a logit and the sum: two errors
    else:
        most = facts.get("official_bf16_rms", 0.02 * facts["logits_std"])
        assert rms <= most, f"{name}: rms {rms}, it may be {most}"


def test_tiny_models_over_http_on_three_nodes():
    for name in TINY:
        check_model(name)


def test_gguf_models_over_http_on_three_nodes():
    folder = SHARED / "models/gguf"
    if not folder.exists():
        assert os.environ.get("MOESAIC_REQUIRE_SHARED") != "1", f"{folder} is missing"
        print(f"  skipped: {folder} is missing", flush=True)
        return
    for name in GGUF:
        plain = name.split("-0000")[0]
        tensors = read_safetensors(folder / f"{plain}.expected.safetensors")
        keys = sorted({k.split(".")[0] for k in tensors})
        prompts = [{"key": k, "ids": list(tensors[f"{k}.ids"][1])} for k in keys]
        exact = name.endswith("-f32") and "gpt_oss" not in name
        with Cluster(folder / f"{name}.gguf", nodes=3) as c:
            errors = ask_prompts(c, {"prompts": prompts}, tensors, exact, name)
        rms = math.sqrt(sum(e * e for e in errors) / len(errors))
        print(f"  {name}: {len(errors)} logprobs, rms {rms:.2e}", flush=True)
        assert rms <= (5e-5 if exact else 0.6 if "phimoe" in name else 0.25), f"{name}: rms {rms}"


def test_switch_over_http_on_two_nodes():
    folder = DATA / "tiny-switch_transformers"
    expected = json.loads((folder / "expected.json").read_text())
    with Cluster(folder, nodes=2) as c:
        for p in expected["prompts"]:
            choice = c.complete(prompt=p["ids"], max_tokens=len(p["greedy"]), temperature=0, ignore_eos=True, return_token_ids=True)["choices"][0]
            assert choice["token_ids"] == p["greedy"], p["key"]


def test_a_sequence_that_outgrows_long_rope():
    """Values of the reference implementation, which computes every step anew; the ninth token and later are beyond 128."""
    x, prompt = 3 * 2654435761 + 1, []
    for _ in range(122):
        x = (x * 1664525 + 1013904223) % 2**32
        prompt.append((x >> 8) % 320)
    with Cluster(DATA / "tiny-phimoe", nodes=2) as c:
        choice = c.complete(prompt=prompt, max_tokens=16, temperature=0, ignore_eos=True, return_token_ids=True)["choices"][0]
    assert choice["token_ids"] == [241, 31, 249, 310, 101, 190, 288, 292, 60, 222, 75, 31, 193, 222, 219, 310], choice["token_ids"]


def test_demo_model_passages():
    expected = json.loads((DEMO / "expected.json").read_text())
    with Cluster(DEMO, nodes=3) as c:
        squares, n = 0.0, 0
        for p in expected["passages"]:
            choice = c.complete(prompt=p["ids"], max_tokens=0, echo=True, logprobs=0)["choices"][0]
            got = choice["logprobs"]["token_logprobs"]
            want = p["logprobs"][-(len(got) - 1):]
            squares += sum((g - w) ** 2 for g, w in zip(got[1:], want))
            n += len(want)
        rms = math.sqrt(squares / n)
        print(f"  demo: {n} logprobs, rms {rms:.2e}", flush=True)
        assert rms <= expected["facts"]["official_bf16_rms"], rms


if __name__ == "__main__":
    run_tests([f for n, f in list(globals().items()) if n.startswith("test_")])
