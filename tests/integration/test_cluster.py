"""The promises, on real processes: the same bits whatever the cluster does, nothing lost when a node is killed, nodes do the
work, and nothing is left behind."""
import http.client
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.parse

from cluster import BIN, DATA, DEMO, Cluster, Stream, alive, free_port, make_model, request, run_tests, together, wait_for

STORY = "Once upon a time there was a king who had three sons."
EIGHT = [f"{w} said to the wolf, and" for w in ("The fox", "The king", "A hare", "The old man", "My son", "The bear", "She", "He")]


def test_generated_large_model_has_the_same_bits_and_really_cuts():
    """Hidden 2080, expert width 1056, 64 experts, a prompt of 2,000 tokens: tiles, pieces and attention blocks are cut."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, "qwen3-30b-a3b,hidden=2080,width=1056,experts=64,layers=1,heads=8,kv_heads=2,head_dim=64,top_k=4,vocab=4096")
        ids = [(i * 7919 + 13) % 4000 + 3 for i in range(2000)]
        ask = dict(prompt=ids, max_tokens=6, logprobs=5, ignore_eos=True, return_token_ids=True)
        for quantize in ("none", "q8_0"):
            results = {}
            for nodes, options in ((0, ["--chunk", 512]), (3, ["--chunk", 64]), (1, ["--chunk", 256, "--threads", 2])):
                with Cluster(folder, "--quantize", quantize, *options, nodes=nodes, ready=180) as c:
                    noise = [lambda p=p: c.complete(prompt=p, max_tokens=20, temperature=0.8, seed=2) for p in EIGHT[:7]]
                    choice = together([lambda: c.complete(**ask), *(noise if nodes == 3 else [])])[0]["choices"][0]
                    results[nodes] = json.dumps([choice["token_ids"], choice["logprobs"]])
                    state = c.cluster()
                    if nodes == 3:
                        # 32 chunks and 5 decode steps over 3 nodes are at most 111 messages when nothing is cut.
                        steps = sum(n["steps"] for n in state["nodes"])
                        assert steps > 150, f"{steps} steps: bulk work was not cut into pieces"
                        check_memory(c, folder)
            assert results[0] == results[1] == results[3], f"{quantize}: logprobs differ between node counts"


def resident(pid):
    with open(f"/proc/{pid}/status") as f:
        lines = {l.split(":")[0]: l.split(":")[1] for l in f}
    return int(lines["RssAnon"].split()[0]) * 1024, int(lines["VmRSS"].split()[0]) * 1024


def check_memory(c, folder):
    """Each node holds its share and little else; the coordinator holds no expert."""
    nodes = c.cluster()["nodes"]
    total = sum(n["bytes"] for n in nodes)
    for n, facts in zip(nodes, c.facts["nodes"]):
        anonymous, rss = resident(facts["pid"])
        assert rss <= n["bytes"] + (64 << 20), f"{n['id']}: resident {rss >> 20} MiB, its share is {n['bytes'] >> 20} MiB"
    anonymous, rss = resident(c.facts["coordinator"]["pid"])
    assert rss < 128 << 20 < total, f"coordinator: resident {rss >> 20} MiB; all experts are {total >> 20} MiB"


def test_nodes_do_the_work():
    layers, top_k = 6, 4
    with Cluster(DEMO, "--no-restart", nodes=3) as c:
        before = c.rows_served()
        usage = c.complete(prompt=STORY, max_tokens=20, ignore_eos=True)["usage"]
        tokens = usage["prompt_tokens"] + usage["completion_tokens"] - 1  # the last token is not computed any more
        state = c.cluster()
        rows = sum(n["rows_served"] for n in state["nodes"]) - before
        assert rows == tokens * layers * top_k + state["engine"]["rows_replayed"], (rows, tokens * layers * top_k)
        assert all(n["rows_served"] > 0 for n in state["nodes"])
        for n in c.facts["nodes"]:
            os.kill(n["pid"], signal.SIGSTOP)
        try:
            request(c.url, "POST", "/v1/completions", dict(prompt=STORY, max_tokens=5), timeout=1.5)
            raise RuntimeError("an answer came without any node")
        except TimeoutError:
            pass
        finally:
            for n in c.facts["nodes"]:
                os.kill(n["pid"], signal.SIGCONT)


def test_eight_streams_share_multiplications():
    with Cluster(DEMO, nodes=1) as c:
        together([lambda p=p: c.complete(prompt=p, max_tokens=60, ignore_eos=True) for p in EIGHT])
        m = request(c.url, "GET", "/v1/cluster")[1]
        rows = m["nodes"][0]["rows_served"]
        assert rows > 0
        described = describe(c.facts["nodes"][0]["address"])
        assert described["rows"] / described["multiplications"] > 1.0, described


def describe(address):
    out = subprocess.run([BIN / "moesaic", "status", "--node", address, "--json"], capture_output=True, text=True, timeout=20)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_a_killed_node_is_not_noticed_with_two_replicas():
    ask = dict(max_tokens=30, temperature=0.8, seed=11, ignore_eos=True)
    with Cluster(DEMO, "--replicas", 2, "--no-restart", nodes=3, env={"MOESAIC_SLOW_US": "3000"}) as c:
        want = [c.complete(prompt=p, **ask)["choices"][0]["text"] for p in EIGHT]
        streams = [Stream(c.url, dict(prompt=p, **ask)) for p in EIGHT]
        together([lambda s=s: s.read(5) for s in streams])
        victim = c.facts["nodes"][1]
        wait_for("the victim owes a step", lambda: c.cluster()["nodes"][1]["in_flight"] > 0)
        os.kill(victim["pid"], signal.SIGKILL)
        together([lambda s=s: s.read() for s in streams])
        for s, w in zip(streams, want):
            assert s.done and s.error is None, s.error
            assert s.text() == w, "an answer changed"
            s.close()
        assert c.cluster()["engine"]["rows_replayed"] > 0
        assert c.complete(prompt=STORY)["usage"]["completion_tokens"] > 0


def test_without_a_replica_answers_wait_for_the_node():
    ask = dict(prompt=STORY, max_tokens=60, temperature=0, ignore_eos=True)
    with Cluster(DEMO, nodes=2) as c:
        want = c.complete(**ask)["choices"][0]["text"]
        s = Stream(c.url, ask).read(5)
        os.kill(c.facts["nodes"][0]["pid"], signal.SIGKILL)
        s.read()
        assert s.done and s.text() == want, (s.error, s.text())
        s.close()


def test_the_deadline_ends_a_wait_with_one_retriable_error():
    with Cluster(DEMO, "--no-restart", "--request-timeout", 2, nodes=2) as c:
        for n in c.facts["nodes"]:
            os.kill(n["pid"], signal.SIGKILL)
        wait_for("the loss to be seen", lambda: not c.cluster()["ready"])
        began = time.monotonic()
        status, body, headers = c.post("/v1/completions", dict(prompt=STORY, max_tokens=5))
        assert status == 503 and body["error"]["message"], (status, body)
        assert 1.5 < time.monotonic() - began < 5
        assert {k.lower() for k in headers} >= {"retry-after"}, headers
        assert request(c.url, "GET", "/readyz")[0] == 503 and request(c.url, "GET", "/livez")[0] == 200
        assert subprocess.run([BIN / "moesaic", "status", "--http", c.url], capture_output=True).returncode == 1


def kv_used(c):
    return c.cluster()["engine"]["kv_blocks_used"]


def test_a_client_that_leaves_frees_its_cache():
    with Cluster(DEMO, nodes=2, env={"MOESAIC_SLOW_US": "2000"}) as c:
        mid = Stream(c.url, dict(prompt=STORY, max_tokens=400, temperature=0, ignore_eos=True)).read(3)
        assert kv_used(c) > 0
        mid.close()
        wait_for("cache of a stream that was left", lambda: kv_used(c) == 0, 5)
        u = urllib.parse.urlparse(c.url)
        prefill = http.client.HTTPConnection(u.hostname, u.port)
        prefill.request("POST", "/v1/completions", json.dumps(dict(prompt=STORY * 25, max_tokens=5)), {"Content-Type": "application/json"})
        wait_for("the prompt to begin", lambda: kv_used(c) > 0, 5)
        prefill.close()
        wait_for("cache of a prompt that was left", lambda: kv_used(c) == 0 and c.cluster()["engine"]["running"] == 0, 5)
        assert c.complete(prompt=STORY)["usage"]["completion_tokens"] > 0


def test_a_client_that_leaves_the_queue_is_forgotten():
    # A cache of 128 tokens: a second long prompt has to wait for the first sequence to end.
    with Cluster(DEMO, "--ctx", 128, nodes=2, env={"MOESAIC_SLOW_US": "2000", "MOESAIC_KV_BYTES": str(128 * 3072)}) as c:
        first = Stream(c.url, dict(prompt=STORY * 7, max_tokens=30, temperature=0, ignore_eos=True)).read(2)
        u = urllib.parse.urlparse(c.url)
        second = http.client.HTTPConnection(u.hostname, u.port)
        second.request("POST", "/v1/completions", json.dumps(dict(prompt=STORY * 8, max_tokens=5)), {"Content-Type": "application/json"})
        wait_for("the second to wait", lambda: c.cluster()["engine"]["waiting"] == 1, 5)
        second.close()
        wait_for("the second to be forgotten", lambda: c.cluster()["engine"]["waiting"] == 0, 5)
        first.read()
        assert first.done and first.finish() == "length"
        first.close()
        wait_for("an empty cache", lambda: kv_used(c) == 0, 5)


def test_a_mismatch_is_refused_at_both_ends():
    port = free_port()
    for node_args, coordinator_args, words in (([], ["--quantize", "q8_0"], ("none", "q8_0")),):
        with open(os.devnull) as null, tempfile.TemporaryFile("w+") as node_log, tempfile.TemporaryFile("w+") as log:
            node = subprocess.Popen([BIN / "moesaic-node", DEMO, "--listen", f"127.0.0.1:{port}", *node_args], stdin=null, stderr=node_log)
            http = free_port()
            coordinator = subprocess.Popen([BIN / "moesaic-coordinator", DEMO, "--nodes", f"127.0.0.1:{port}", "--http", f"127.0.0.1:{http}",
                                            "--grpc", "127.0.0.1:0", *coordinator_args], stdin=null, stderr=log, stdout=subprocess.DEVNULL)
            try:
                def said(f):
                    f.seek(0)
                    return f.read()
                for f in (node_log, log):
                    wait_for(f"both values in {said(f)}", lambda: "refuse" in said(f) and all(w in said(f) for w in words), 15)
                status, body, _ = request(f"http://127.0.0.1:{http}", "GET", "/readyz?verbose")
                assert status == 503, (status, body)
            finally:
                coordinator.kill()
                node.kill()
                coordinator.wait()
                node.wait()


def test_a_node_needs_only_the_files_that_inspect_names():
    model = DATA / "tiny-qwen3_moe-bf16"
    ask = dict(prompt=[293, 315, 286], max_tokens=8, temperature=0, logprobs=2, ignore_eos=True)
    with Cluster(model, nodes=0) as c:
        want = c.complete(**ask)["choices"][0]["logprobs"]
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as null:
        started, addresses = [], []
        try:
            for i, spec in enumerate(("0:*", "1:*")):
                part = pathlib.Path(folder) / str(i)
                part.mkdir()
                code, said = run(BIN / "moesaic", "inspect", model, "--experts", spec, "--files", "--json")
                files = [pathlib.Path(f["path"]) for f in json.loads(said)["selected"]["files"]]
                assert code == 0 and len([f for f in files if f.suffix == ".safetensors"]) == 1, files
                for f in files:
                    (part / f.name).write_bytes(f.read_bytes())
                addresses.append(f"127.0.0.1:{free_port()}")
                started.append(subprocess.Popen([BIN / "moesaic-node", part, "--experts", spec, "--listen", addresses[-1]], stderr=null))
            wrong = run(BIN / "moesaic-node", part, "--experts", "0:1", "--listen", "127.0.0.1:0")
            assert wrong[0] == 4 and "expert 1 of layer 0 is not on this machine" in wrong[1], wrong
            http_port = free_port()
            started.append(subprocess.Popen([BIN / "moesaic-coordinator", model, "--nodes", ",".join(addresses), "--grpc", "127.0.0.1:0",
                                             "--http", f"127.0.0.1:{http_port}"], stdout=null, stderr=null))
            url = f"http://127.0.0.1:{http_port}"
            wait_for("the cluster", lambda: answers_ready(url), 20)
            status, body, _ = request(url, "POST", "/v1/completions", ask)
            assert status == 200 and body["choices"][0]["logprobs"] == want, (status, body)
        finally:
            for p in started:
                p.kill()
                p.wait()


def answers_ready(url):
    try:
        return request(url, "GET", "/readyz")[0] == 200
    except OSError:
        return False


def test_up_leaves_nothing_behind():
    with Cluster(DEMO, nodes=3) as c:
        pids = c.pids()
        assert all(alive(p) for p in pids)
    assert not any(alive(p) for p in pids), "after SIGTERM"
    assert c.process.returncode == 0
    with Cluster(DEMO, nodes=2) as c:
        pids = c.pids()
        c.process.kill()
        wait_for("children to end after kill -9 of up", lambda: not any(alive(p) for p in pids), 10)
    with Cluster(DEMO, nodes=2) as c:
        pids = c.pids()
        os.kill(c.facts["nodes"][0]["pid"], signal.SIGSTOP)  # one that cannot see its parent die
        c.process.kill()
        wait_for("a stopped child to end", lambda: not any(alive(p) for p in pids), 10)


def test_up_restarts_what_dies_on_the_same_port():
    with Cluster(DEMO, nodes=2) as c:
        first = c.facts
        os.kill(first["nodes"][0]["pid"], signal.SIGKILL)
        wait_for("a new process in the ready file", lambda: c.facts["nodes"][0]["pid"] != first["nodes"][0]["pid"])
        assert c.facts["nodes"][0]["address"] == first["nodes"][0]["address"]
        os.kill(c.facts["coordinator"]["pid"], signal.SIGKILL)
        wait_for("a new coordinator", lambda: c.facts["coordinator"]["pid"] != first["coordinator"]["pid"])
        assert c.facts["http"] == first["http"]
        assert c.complete(prompt=STORY)["choices"][0]["text"]


def run(*args, timeout=30):
    p = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=timeout)
    return p.returncode, p.stdout + p.stderr


def test_wrong_input_gets_clear_answers():
    moesaic = BIN / "moesaic"
    code, said = run(moesaic, "up", DEMO, "--nodes", 2, "--replicas", 3)
    assert code != 0 and "--replicas=3" in said and "--nodes=2" in said, said
    code, said = run(moesaic, "up", "/nowhere")
    assert code == 4 and "/nowhere" in said, (code, said)
    code, said = run(moesaic, "up", DEMO, "--http", "0.0.0.0:0", "--nodes", 0)
    assert code == 2 and "--insecure" in said, (code, said)
    code, said = run(moesaic, "node", DEMO, "--listen", "0.0.0.0:0")
    assert code == 2 and "--insecure" in said, (code, said)
    code, said = run(moesaic, "nonsense")
    assert code == 2 and "nonsense" in said
    code, said = run(moesaic, "up", DEMO, "--ctx", 100000, "--nodes", 0)
    assert code != 0 and "100000" in said and "512" in said, said
    with Cluster(DEMO, nodes=0) as c:
        code, said = run(moesaic, "up", DEMO, "--nodes", 0, "--http", c.url.removeprefix("http://"), "--grpc", "127.0.0.1:0")
        assert code == 5 and "in use" in said, (code, said)
        status, body, _ = c.post("/v1/completions", "{nonsense")
        assert status == 400 and body["error"]["type"] == "invalid_request_error", body
        status, body, _ = c.post("/v1/completions", dict(prompt=STORY * 100))
        assert status == 400 and body["error"]["n_ctx"] == 512 and body["error"]["n_prompt_tokens"] > 512, body
    with tempfile.TemporaryDirectory() as folder:
        broken = pathlib.Path(folder)
        for f in DEMO.iterdir():
            (broken / f.name).write_bytes(f.read_bytes())
        raw = (broken / "model.safetensors").read_bytes()
        (broken / "model.safetensors").write_bytes(raw[:-1000])
        code, said = run(moesaic, "up", broken, "--nodes", 0)
        assert code == 4 and "model.safetensors" in said, (code, said)
    code, said = run(moesaic, "up", "model.gguf", "--nodes", 0)
    assert code == 4, (code, said)


def test_status_and_chat_commands():
    moesaic = BIN / "moesaic"
    with Cluster(DEMO, nodes=2) as c:
        code, said = run(moesaic, "status", "--http", c.url)
        assert code == 0 and "node-0" in said and "node-1" in said, said
        code, said = run(moesaic, "status", "--json", "--http", c.url)
        assert code == 0 and json.loads(said)["state"] == "ok"
        code, said = run(moesaic, "chat", "--http", c.url, "--max-tokens", 8, "--temperature", 0, "Tell me a story.")
        assert code == 0 and len(said.strip()) > 5, said
        url = c.url
    code, said = run(moesaic, "status", "--http", url)
    assert code == 2 and "down" in said, (code, said)


def test_a_chat_remembers_what_was_said():
    """Each turn asks with all that was said before; a question that was refused is forgotten, others are not."""
    with Cluster(DEMO, nodes=2) as c:
        def chat(typed, *options):
            done = subprocess.run([BIN / "moesaic", "chat", "--http", c.url, "--max-tokens", "12", "--temperature", "0", *options], input=typed,
                                  capture_output=True, timeout=60)
            return done.stdout.decode().splitlines(), done.stderr.decode()

        def expect(got, wanted):
            assert got == wanted, f"{got} instead of {wanted}"

        def api(messages):
            status, answer, _ = c.post("/v1/chat/completions", {"messages": messages, "max_tokens": 12, "temperature": 0})
            assert status == 200, answer
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
            return messages[-1]["content"]

        def conversation(*questions, system=None):
            messages = [{"role": "system", "content": system}] if system else []
            return [api(messages) for q in questions if not messages.append({"role": "user", "content": q})]

        first, second, third = "Tell me of a fox.", "What did it say?", "And the crow?"
        want = conversation(first, second, third)
        assert want[1] != conversation(second)[0], "the second answer does not depend on the first turn"
        expect(chat(f"{first}\n\n{second}\r\n{third}\n".encode()), (want, ""))
        lines, errors = chat(f"{first}\n{'fox ' * 3000}\n{second}\n".encode())
        assert lines == [want[0], "", want[1]] and "maximum context length is 512" in errors, (lines, errors)
        # Bytes that are no UTF-8, typed and as an argument: one U+FFFD for each part.
        want = conversation("a \ufffd\ufffd fox", second, system="Be \ufffd brief.")
        expect(chat(b"a \xff\xfe fox\n" + second.encode(), "--system", b"Be \xe2\x82 brief."), (want, ""))
        expect(chat(b"", b"a \xff\xfe fox"), (conversation("a \ufffd\ufffd fox"), ""))


if __name__ == "__main__":
    run_tests([f for n, f in list(globals().items()) if n.startswith("test_")])
