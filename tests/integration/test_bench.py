"""The benchmarks run, print what they say, and refuse what makes no sense. No figure is judged here."""
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

from cluster import BIN, make_model, run_tests, wait_for

# Large enough that streams which start together also decode together.
SMALL = "mixtral-8x7b,layers=4,hidden=1024,width=1024,experts=4,heads=4,kv_heads=2,head_dim=16,vocab=400"


def bench(*args, **kw):
    return subprocess.run([BIN / "moesaic", "bench", *map(str, args)], capture_output=True, text=True, timeout=120, **kw)


def test_kernels_are_compared_with_the_machine():
    done = bench("kernels", "--outputs", 32, "--inputs", 256, "--pieces", 1, "--json")
    assert done.returncode == 0, done.stderr
    d = json.loads(done.stdout)
    formats = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "mxfp4", "f8", "f16", "bf16", "f32")
    assert [(p["format"], p["rows"]) for p in d["products"]] == [(f, r) for f in formats for r in (1, 4, 8, 16, 64)]
    assert all(p["share_of_read"] > 0 and p["share_of_peak"] > 0 for p in d["products"])


def test_the_wire_takes_at_least_what_its_proxy_holds_back():
    done = bench("wire", "--delay-us", 3000, "--mbit", 500, "--repetitions", 1, "--json")
    assert done.returncode == 0, done.stderr
    d = json.loads(done.stdout)
    assert d["delay_us"] == 3000 and d["mbit"] == 500 and [s["bytes"] for s in d["sizes"]] == [16 << 10, 64 << 10, 1 << 20]
    for s in d["sizes"]:
        assert s["cable_us"] == round(2 * (3000 + s["bytes"] * 8 / 500), 1), s
        assert s["tcp_p50_us"] >= s["cable_us"] and s["grpc_p50_us"] >= s["cable_us"], s


def test_a_model_is_measured_in_one_process_and_on_a_cluster():
    with tempfile.TemporaryDirectory() as folder:
        make_model(pathlib.Path(folder) / "m", SMALL)
        done = bench("model", "--model", pathlib.Path(folder) / "m", "--nodes", "0,2", "--streams", "1,3", "--tokens", 160, "--prompt", 20,
                     "--rounds", 1, "--json", env={**os.environ, "TMPDIR": folder})
        assert done.returncode == 0, done.stderr
        d = json.loads(done.stdout)
        assert [s["name"] for s in d["setups"]] == ["one process", "2 nodes"]
        assert all(s["prefill"] > 0 and s["decode"]["1"] > 0 and s["decode"]["3"] > 0 for s in d["setups"])
        # A token's weights: 4 attention matrices, the chosen 2 of 4 experts and the head at 17/16 bytes; the router in f32.
        layer = 1024 * 16 * (4 + 2) * 2 + 2 * 3 * 1024 * 1024
        assert d["bytes_per_token"] == (4 * layer + 400 * 1024) * 17 / 16 + 4 * 4 * 1024 * 4
        assert sorted(p.name for p in pathlib.Path(folder).iterdir()) == ["m"], "something was left behind"


def test_a_generated_model_is_removed_when_interrupted():
    with tempfile.TemporaryDirectory() as folder:
        p = subprocess.Popen([BIN / "moesaic", "bench", "model", "--shape", SMALL, "--rounds", "99", "--tokens", "160"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": folder})
        wait_for("a cluster of it", lambda: list(pathlib.Path(folder).glob("*/ready.json")), 60)
        time.sleep(0.3)
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=60)
        assert p.returncode == 130 and "interrupted" in err, (p.returncode, err)
        assert not list(pathlib.Path(folder).iterdir()), "something was left behind"


def test_nonsense_is_refused_by_name():
    for args, code, word in ((["model", "--shape", "gpt-9"], 1, "olmoe-1b-7b"),
                             (["model", "--shape", "olmoe-1b-7b,hidden=33"], 1, "multiple of 32 from"),
                             (["model", "--shape", "olmoe-1b-7b,top_k=64,experts=8"], 1, "more than experts 8"),
                             (["model", "--shape", "olmoe-1b-7b,colour=1"], 1, "colour"),
                             (["model", "--nodes", "1,x"], 2, "--nodes"),
                             (["model", "--model", "/nowhere"], 1, "/nowhere"),
                             (["model", "--model", "a", "--make", "b"], 2, "--make"),
                             (["kernels", "--inputs", "33"], 2, "multiple of 256"),
                             (["wire", "--delay-us", "1000001"], 2, "--delay-us"),
                             (["wire", "--mbit", "fast"], 2, "--mbit"),
                             (["no-such-part"], 2, "wire")):
        done = bench(*args)
        assert done.returncode == code and word in done.stderr, (args, done.returncode, done.stderr)


if __name__ == "__main__":
    run_tests([v for k, v in list(globals().items()) if k.startswith("test_")])
