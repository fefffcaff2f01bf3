"""The same bits, over all that a cluster may do: every value of each axis meets every value of every other at least once.

An axis is something that must not show in an answer. One row of the table is one cluster; on each, three requests (greedy,
sampled, with penalties) run alone, as three of eight at once, and admitted late, while five others decode. Model and storage
have answers of their own, which one process (no node, alone, one chunk) gives; all others must equal them: tokens, and the
logprobs of prompt and output with nine digits, which tell any two floats apart.

    python3 tests/integration/test_same_bits.py [WORD...] [--rows]      --rows: print the table

MOESAIC_BIN_AVX512: a folder of programs built with -DMOESAIC_EMULATE_AVX512=ON. On a CPU without AVX-512 the clusters that
have to do with it are of these."""
import concurrent.futures
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile

from cluster import BIN, DATA, Cluster, Stream, make_model, run_tests, together, wait_for

N_PROMPT, N_OUTPUT = 125, 8  # from the second block of keys and values into the third while decoding
BLOCK = 64
CTX = 256
AT_ONCE = 2  # clusters; each waits much for its own processes
EMULATED = pathlib.Path(os.environ.get("MOESAIC_BIN_AVX512", BIN))

AXES = {
    "model": ["mixtral", "olmoe", "qwen3_moe", "generated", "deepseek_v3", "gpt_oss", "llama4", "phimoe"],
    "storage": ["f32", "bf16", "q8_0", "q4_0", "mxfp4"],
    "nodes": [0, 1, 2, 3, 5],
    "seed": [1, 2, 3, 4, 5],
    "replicas": [1, 2],
    "chunk": [1, 7, 64, 256],
    "threads": [1, 2],
    "kernels": ["ref", "avx2", "avx512", "mixed"],
    "cache": ["roomy", "tight"],
    "fault": ["none", "killed"],
}


def possible(row):
    """What cannot be: a placement, a second copy, a kill or a mixture where there are too few nodes."""
    nodes = row.get("nodes")
    if nodes is None:
        return True
    if nodes < 2 and (row.get("replicas") == 2 or row.get("kernels") == "mixed"):
        return False
    return nodes > 0 or row.get("fault") != "killed"


def pairs(row, axes):
    return {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(axes, 2)}


def covering(axes):
    """Rows that contain every possible pair; greedy, the same each time."""
    left = {((a, x), (b, y)) for a, b in itertools.combinations(axes, 2) for x in axes[a] for y in axes[b] if possible({a: x, b: y})}
    rng, rows = random.Random(1), []
    while left:
        best, best_gain = None, -1
        for _ in range(60):
            (a, x), (b, y) = rng.choice(sorted(left, key=repr))
            row = {}
            for name in [a, b, *rng.sample([n for n in axes if n not in (a, b)], len(axes) - 2)]:
                values = [x] if name == a else [y] if name == b else [v for v in axes[name] if possible({**row, name: v, a: x, b: y})]
                if not values:
                    break
                gain = {v: sum(((p, row[p]), (name, v)) in left or ((name, v), (p, row[p])) in left for p in row) for v in values}
                row[name] = max(values, key=lambda v: (gain[v], rng.random()))
            if len(row) < len(axes) or not possible(row):
                continue
            row = {n: row[n] for n in axes}
            gain = len(pairs(row, axes) & left)
            if gain > best_gain:
                best, best_gain = row, gain
        rows.append(best)
        left -= pairs(best, axes)
    return rows


def programs_by_kernels():
    """ref, avx2, ... -> the programs that have them here: what their `moesaic bench kernels` accepts."""
    def accepts(programs, k):
        return subprocess.run([programs / "moesaic", "bench", "kernels", "--cpu", k, "--outputs", "16", "--inputs", "256", "--pieces", "1"],
                              capture_output=True, timeout=60).returncode == 0
    found = {k: next((p for p in (BIN, EMULATED) if accepts(p, k)), None) for k in ("ref", "avx2", "avx512")}
    return {k: p for k, p in found.items() if p}


def convert(source, folder, storage):
    """A copy with other weights' storage: f32 cut to bf16, or bf16 as f32. Exact enough: both sides of a comparison get the same file."""
    folder.mkdir()
    for f in source.iterdir():
        if f.suffix in (".json", ".jinja") and f.name != "expected.json":
            (folder / f.name).write_bytes(f.read_bytes())
    raw = (source / "model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header, body, at = json.loads(raw[8:8 + n]), [], 0
    for name, t in header.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        data = raw[8 + n + begin:8 + n + end]
        if t["dtype"] == "F32" and storage == "bf16":
            out = bytearray(len(data) // 2)
            out[0::2], out[1::2], t["dtype"] = data[2::4], data[3::4], "BF16"
        elif t["dtype"] == "BF16" and storage == "f32":
            out = bytearray(len(data) * 2)
            out[2::4], out[3::4], t["dtype"] = data[0::2], data[1::2], "F32"
        else:
            out = data
        t["data_offsets"] = [at, at + len(out)]
        at += len(out)
        body.append(bytes(out))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(body))


class Models:
    """model, storage -> the folder to serve; made once."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        make_model(self.folder / "generated", "qwen3-30b-a3b,hidden=544,width=96,experts=16,layers=2,heads=4,kv_heads=2,head_dim=32,vocab=320")

    def path(self, model, storage):
        source = self.folder / "generated" if model == "generated" else DATA / f"tiny-{model}"
        wanted = "f32" if storage == "f32" else "bf16"
        if wanted == ("bf16" if model == "generated" else "f32"):
            return source
        made = self.folder / f"{model}-{wanted}"
        if not made.exists():
            convert(source, made, wanted)
        return made

    def block_bytes(self, model, storage):
        """Keys and values of one block of positions, all layers."""
        c = json.loads((self.path(model, storage) / "config.json").read_text())
        c = c.get("text_config", c)
        if "kv_lora_rank" in c:
            width = c["kv_lora_rank"] + c["qk_rope_head_dim"]
        else:
            width = 2 * c["num_key_value_heads"] * c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
        return BLOCK * c["num_hidden_layers"] * width * (4 if storage == "f32" else 2)


def asks():
    rng = random.Random(5)
    base = [dict(prompt=[rng.randrange(3, 320) for _ in range(N_PROMPT)], max_tokens=N_OUTPUT, logprobs=5, echo=True, ignore_eos=True,
                 return_token_ids=True, temperature=0) for _ in range(3)]
    base[1] |= dict(temperature=0.9, top_p=0.95, seed=7)
    base[2] |= dict(temperature=0.7, seed=3, presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.3,
                    logit_bias={"100": 3, "5": -100})
    return base


def others():
    rng = random.Random(6)
    return [dict(prompt=[rng.randrange(3, 320) for _ in range(40 + 17 * i)], max_tokens=24, ignore_eos=True, temperature=1.0, seed=i)
            for i in range(5)]


def answer(c, ask):
    choice = c.complete(**ask)["choices"][0]
    return json.dumps([choice["token_ids"], choice["logprobs"]])


class Counts:
    """What must have happened somewhere in the table, or it proved less than it says."""

    def __init__(self, parts=()):
        self.clusters, self.answers, self.replayed, self.preempted, self.cut = (
            sum(getattr(p, name) for p in parts) for name in ("clusters", "answers", "replayed", "preempted", "cut"))
        self.densest = max((p.densest for p in parts), default=0.0)
        self.sparsest = min((p.sparsest for p in parts), default=1e9)

    def multiplications(self, c):
        for n in c.facts["nodes"]:
            out = subprocess.run([BIN / "moesaic", "status", "--node", n["address"], "--json"], capture_output=True, text=True, timeout=20)
            d = json.loads(out.stdout) if out.returncode == 0 else {}
            if d.get("multiplications"):
                self.densest = max(self.densest, d["rows"] / d["multiplications"])
                self.sparsest = min(self.sparsest, d["rows"] / d["multiplications"])


def options(row, cpus):
    o = ["--ctx", CTX, "--chunk", row["chunk"], "--threads", row["threads"], "--replicas", row["replicas"]]
    if row["nodes"] > 0:
        o += ["--placement-seed", row["seed"]]
    if row["storage"] not in ("f32", "bf16"):
        o += ["--quantize", row["storage"]]
    if row["kernels"] == "mixed":
        o += ["--node-cpu", ",".join(itertools.islice(itertools.cycle(cpus), row["nodes"]))]
    else:
        o += ["--cpu", row["kernels"]]
    return o


def environment(row, models):
    env = {"MOESAIC_SLOW_US": "2000"} if row["fault"] == "killed" else {}
    if row["cache"] == "tight":
        env["MOESAIC_KV_BYTES"] = str(10 * models.block_bytes(row["model"], row["storage"]))
    return env


def kill_one(c):
    """The first node that owes an answer is killed; `up` starts it again."""
    busy = wait_for("a node owes a step", lambda: [i for i, n in enumerate(c.cluster()["nodes"]) if n["in_flight"]])
    os.kill(c.facts["nodes"][busy[0]]["pid"], signal.SIGKILL)


def check(row, want, models, cpus):
    """One cluster, and what happened on it."""
    counts = Counts()
    programs = cpus[list(cpus)[-1] if row["kernels"] == "mixed" else row["kernels"]]
    with Cluster(models.path(row["model"], row["storage"]), *options(row, cpus), nodes=row["nodes"], env=environment(row, models),
                 programs=programs) as c:
        def expect(got, company):
            for ask, g, w in zip(("greedy", "sampled", "penalties"), got, want):
                if g != w:
                    raise AssertionError(f"{company}, {ask}, on {row}\n got {g[:400]}\nwant {w[:400]}")
            counts.answers += len(got)

        expect([answer(c, a) for a in asks()], "alone")
        if row["nodes"] > 0:
            counts.multiplications(c)
            passes = -(-N_PROMPT // row["chunk"]) + N_OUTPUT - 1
            layers = len(c.cluster()["placement"]["layers"])
            counts.cut += sum(n["steps"] for n in c.cluster()["nodes"]) > 3 * passes * layers * row["nodes"]
        company = [lambda a=a: answer(c, a) for a in asks()] + [lambda o=o: c.complete(**o) for o in others()]
        killer = [lambda: kill_one(c)] if row["fault"] == "killed" else []
        expect(together(company + killer)[:3], "with seven others")
        streams = [Stream(c.url, o) for o in others()]
        together([lambda s=s: s.read(2) for s in streams])
        expect(together([lambda a=a: answer(c, a) for a in asks()]), "admitted late")
        together([lambda s=s: s.read() for s in streams])
        for s in streams:
            assert s.done and s.error is None, s.error
            s.close()
        engine = c.cluster()["engine"]
        counts.replayed += engine["rows_replayed"]
        counts.preempted += engine["preemptions"]
        counts.clusters += 1
    return counts


def table(cpus):
    usable = [k for k in AXES["kernels"] if k in cpus or (k == "mixed" and len(cpus) > 1)]
    return {**AXES, "kernels": usable}


def test_the_table_contains_every_possible_pair():
    axes = AXES
    seen = set().union(*(pairs(r, list(axes)) for r in covering(axes)))
    for a, b in itertools.combinations(axes, 2):
        for x, y in itertools.product(axes[a], axes[b]):
            if possible({a: x, b: y}):
                assert ((a, x), (b, y)) in seen, f"{a}={x} never meets {b}={y}"
    assert all(possible(r) for r in covering(axes))


def test_same_bits_over_every_pair():
    cpus = programs_by_kernels()
    axes = table(cpus)
    missing = [k for k in AXES["kernels"] if k not in axes["kernels"]]
    rows = covering(axes)
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        models = Models(folder)
        keys = {(row["model"], row["storage"]): row for row in rows}
        for key in keys:
            models.path(*key)

        def alone(key):
            one = dict(keys[key], nodes=0, seed=1, replicas=1, chunk=256, threads=1, kernels="ref", cache="roomy", fault="none")
            with Cluster(models.path(*key), *options(one, cpus), nodes=0) as c:
                return [answer(c, a) for a in asks()]

        try:
            wants = dict(zip(keys, pool.map(alone, keys)))
            for want in wants.values():
                assert len(set(want)) == 3, "three requests, and not three answers"
            n = Counts(list(pool.map(lambda row: check(row, wants[row["model"], row["storage"]], models, cpus), rows)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print(f"  {n.clusters} clusters, {n.answers} answers equal; kernels {', '.join(cpus)}{' (not on this CPU: ' + ', '.join(missing) + ')' if missing else ''}; "
          f"{n.replayed} rows replayed, {n.preempted} preemptions, work cut into pieces on {n.cut}, "
          f"{n.sparsest:.1f} to {n.densest:.1f} rows per multiplication")
    assert n.answers == 9 * len(rows)
    assert n.replayed > 0, "no row was ever asked twice"
    assert n.preempted > 0, "no sequence was ever preempted"
    assert n.cut > 0, "no layer's work was ever cut into pieces"
    assert n.densest > 6 > 2 > n.sparsest, "multiplications of one tile and of several must both occur"


if __name__ == "__main__":
    if "--rows" in sys.argv:
        for r in covering(table(programs_by_kernels())):
            print(json.dumps(r))
        sys.exit(0)
    run_tests([test_the_table_contains_every_possible_pair, test_same_bits_over_every_pair])
