"""How fast Moesaic serves a model: one process beside a cluster on the same cores, runs interleaved.

    MOESAIC_BIN=build/bin python3 tests/bench/bench_cluster.py MODEL [--setup "NAME=up options" ...] [--rounds 3]
        [--streams 1,8,16] [--tokens 32] [--prompt 512] [--read build/tests/bench_read]

Every round starts each setup in turn, warms it up, and measures: decode tokens/s of all streams together (between the
last first token and the first last token, so that all are decoding), prefill tokens/s of one long prompt, and for one
stream the bytes that must be read per token beside what bench_read reaches. Medians over the rounds. Every prompt is
different. With --baseline DIR a second build's programs are run in turn with the first, and ratios are printed."""
import argparse
import http.client
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import cluster  # noqa: E402

SETUPS = ["one bf16=--nodes 0", "2 nodes bf16=--nodes 2", "one q8_0=--nodes 0 --quantize q8_0",
          "2 nodes q8_0=--nodes 2 --quantize q8_0"]


def stream(url, prompt, tokens, times):
    """Arrival times of the tokens of one completion."""
    u = urllib.parse.urlparse(url)
    c = http.client.HTTPConnection(u.hostname, u.port, timeout=600)
    c.request("POST", "/v1/completions", json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
                                                     "ignore_eos": True, "logprobs": 0}), {"Content-Type": "application/json"})
    r = c.getresponse()
    if r.status != 200:
        raise AssertionError(r.read())
    lines = []
    while line := r.readline():
        lines.append((time.monotonic(), line))
    c.close()
    for at, line in lines:  # parsed at the end: until then the cores are for the server
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                times += [at] * len((choice["logprobs"] or {}).get("tokens", []))
    if len(times) < tokens:
        raise AssertionError(f"{len(times)} of {tokens} tokens came")


def random_prompt(rng, n, vocab):
    return [rng.randrange(300, vocab) for _ in range(n)]


def decode(url, rng, vocab, n_streams, tokens):
    times = [[] for _ in range(n_streams)]
    threads = [threading.Thread(target=stream, args=(url, random_prompt(rng, 8, vocab), tokens, t)) for t in times]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    begin, end = max(t[0] for t in times), min(t[tokens - 1] for t in times)
    return sum(sum(begin < x <= end for x in t) for t in times) / (end - begin)


def prefill(url, rng, vocab, n):
    times, began = [], time.monotonic()
    stream(url, random_prompt(rng, n, vocab), 1, times)
    return n / (times[0] - began)


def bytes_per_token(config, q8):
    """Of weights, for one token alone: attention, router, the chosen experts, the head (the cache is small beside it)."""
    d, layers = config["hidden_size"], config["num_hidden_layers"]
    width = config.get("head_dim", d // config["num_attention_heads"])
    attention = d * width * 2 * (config["num_attention_heads"] + config["num_key_value_heads"])
    experts = config["num_experts_per_tok"] * 3 * d * config["moe_intermediate_size"]
    per_weight = 1 + 2 / 32 if q8 else 2  # q8_0: an f16 scale per 32
    return (layers * (attention + experts) + config["vocab_size"] * d) * per_weight + layers * config["num_experts"] * d * 4


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model", type=pathlib.Path)
    a.add_argument("--setup", action="append", default=[])
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--streams", default="1,8,16")
    a.add_argument("--tokens", type=int, default=32)
    a.add_argument("--prompt", type=int, default=512)
    a.add_argument("--read", type=pathlib.Path, help="bench_read")
    a.add_argument("--baseline", type=pathlib.Path, help="bin folder of another build")
    o = a.parse_args()
    config = json.loads((o.model / "config.json").read_text())
    streams = [int(s) for s in o.streams.split(",")]
    builds = [("", cluster.BIN)] + ([("base: ", o.baseline)] if o.baseline else [])
    setups = [s.split("=", 1) for s in o.setup or SETUPS]
    columns = [f"decode x{n}" for n in streams] + [f"prefill {o.prompt}"]
    figures, reads, rng = {}, [], random.Random(time.time_ns())
    for round_ in range(o.rounds):
        if o.read:
            reads.append(json.loads(subprocess.check_output([o.read, str(os.cpu_count())]))["median_gbs"])
        for name, options in setups:
            for label, folder in builds:
                cluster.BIN = folder
                row = figures.setdefault(label + name, {c: [] for c in columns})
                with cluster.Cluster(o.model, "--ctx", max(2048, 2 * o.prompt), *options.split(), ready=300) as c:
                    prefill(c.url, rng, config["vocab_size"], o.prompt)
                    for n, column in zip(streams, columns):
                        row[column].append(decode(c.url, rng, config["vocab_size"], n, o.tokens))
                    row[columns[-1]] += [prefill(c.url, rng, config["vocab_size"], o.prompt) for _ in range(2)]
                print(f"round {round_ + 1} {label + name}: " + ", ".join(f"{k} {v[-1]:.1f}" for k, v in row.items()),
                      file=sys.stderr, flush=True)
    median = {name: {c: statistics.median(v) for c, v in row.items()} for name, row in figures.items()}
    print("\n| tokens/s | " + " | ".join(columns) + " |" + (" x1 reads, of the read loop |" if reads else ""))
    print("| --- |" + " --- |" * (len(columns) + bool(reads)))
    for name, row in median.items():
        line = f"| {name} | " + " | ".join(f"{v:.1f}" for v in row.values()) + " |"
        if reads and streams[0] == 1:
            options = dict(setups)[name.removeprefix("base: ")]
            rate = bytes_per_token(config, "q8_0" in options) * row[columns[0]] / 1e9
            line += f" {rate:.1f} GB/s, {100 * rate / statistics.median(reads):.0f} % |"
        print(line)
        if name.startswith("base: "):
            mine = median[name.removeprefix("base: ")]
            print(f"| ratio to base, {name.removeprefix('base: ')} | " +
                  " | ".join(f"{mine[c] / row[c]:.2f}" for c in columns) + " |" + (" |" if reads else ""))


if __name__ == "__main__":
    main()
