"""Truth over HTTP: the official numbers, from a real cluster of three nodes (echo + logprobs), and the same bits as one process."""
import json
import math

from cluster import DATA, DEMO, Cluster, read_safetensors, run_tests

TINY = ["tiny-mixtral", "tiny-qwen3_moe", "tiny-olmoe", "tiny-mixtral-bf16", "tiny-qwen3_moe-bf16"]


def log_softmax(row):
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    return [x - top - math.log(total) for x in row]


def check_model(name):
    expected = json.loads((DATA / name / "expected.json").read_text())
    tensors = read_safetensors(DATA / name / "expected.safetensors")
    squares, n_values, worst = 0.0, 0, 0.0
    with Cluster(DATA / name, nodes=3) as c:
        for p in expected["prompts"]:
            ids, key = p["ids"], p["key"]
            answer = c.complete(prompt=ids, max_tokens=len(p["greedy"]), echo=True, logprobs=20, ignore_eos=True,
                                return_token_ids=True)
            choice = answer["choices"][0]
            assert choice["prompt_token_ids"] == ids
            if expected["facts"]["storage"] == "f32":
                assert choice["token_ids"] == p["greedy"], f"{name} {key}: greedy tokens differ"
            rows = tensors[f"{key}.rows"][1]
            shape, logits = tensors[f"{key}.logits"]
            for r, position in enumerate(rows):
                want = log_softmax(logits[r * shape[1]:(r + 1) * shape[1]])
                # What follows position is the token at position + 1: of the prompt, or the first generated one.
                token = ids[position + 1] if position + 1 < len(ids) else choice["token_ids"][0]
                got = choice["logprobs"]["token_logprobs"][position + 1]
                squares += (got - want[token]) ** 2
                n_values += 1
                worst = max(worst, abs(got - want[token]))
            assert choice["logprobs"]["token_logprobs"][0] is None
    rms = math.sqrt(squares / n_values)
    facts = expected["facts"]
    print(f"  {name}: {n_values} logprobs, worst error {worst:.2e}, rms {rms:.2e}", flush=True)
    if facts["storage"] == "f32":
        assert worst <= 2 * expected["tolerance"]["logits"], f"{name}: {worst}"  # a logit and the sum: two errors
    else:
        assert rms <= facts["official_bf16_rms"], f"{name}: rms {rms}, the official implementation's own is {facts['official_bf16_rms']}"


def test_tiny_models_over_http_on_three_nodes():
    for name in TINY:
        check_model(name)


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
