"""A cluster of real processes for tests, and the few requests they make. Standard library only."""
import http.client
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MOESAIC_BIN", ROOT / "build" / "bin"))
DATA = ROOT / "tests" / "data" / "models"
DEMO = ROOT / "deploy" / "demo"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, condition, seconds=30.0):
    """Poll until condition() is true; the value, or a failure that names what did not happen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def request(url, method, path, body=None, timeout=120, headers=None):
    """(status, parsed JSON or text, headers)."""
    u = urllib.parse.urlparse(url)
    c = http.client.HTTPConnection(u.hostname, u.port, timeout=timeout)
    try:
        data = None if body is None else body if isinstance(body, (bytes, str)) else json.dumps(body)
        c.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        r = c.getresponse()
        raw = r.read()
        try:
            return r.status, json.loads(raw), dict(r.getheaders())
        except ValueError:
            return r.status, raw.decode("utf-8", "replace"), dict(r.getheaders())
    finally:
        c.close()


class Stream:
    """A streamed completion that can be read piece by piece, or left."""

    def __init__(self, url, body, path="/v1/completions", timeout=120):
        u = urllib.parse.urlparse(url)
        self.connection = http.client.HTTPConnection(u.hostname, u.port, timeout=timeout)
        self.connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        self.response = self.connection.getresponse()
        self.events, self.done, self.error = [], False, None

    def read(self, n=None):
        """Read until n events in all, or to the end."""
        while not self.done and (n is None or len(self.events) < n):
            line = self.response.readline()
            if not line:
                break
            if not line.startswith(b"data: "):
                continue
            data = line[6:].strip()
            if data == b"[DONE]":
                self.done = True
                break
            event = json.loads(data)
            if "error" in event:
                self.error = event["error"]
                break
            self.events.append(event)
        return self

    def choices(self):
        return [e["choices"][0] for e in self.events if e["choices"]]

    def text(self):
        return "".join(c["text"] for c in self.choices())

    def finish(self):
        return next((c["finish_reason"] for c in self.choices() if c["finish_reason"]), None)

    def close(self):
        self.connection.close()


class Api:
    """What is asked of a cluster, however it was started; `url` comes from the subclass."""

    def post(self, path, body, **kw):
        return request(self.url, "POST", path, body, **kw)

    def complete(self, **body):
        status, answer, _ = self.post("/v1/completions", {"max_tokens": 16, "temperature": 0, **body})
        assert status == 200, (status, answer)
        return answer

    def cluster(self):
        return request(self.url, "GET", "/v1/cluster")[1]

    def rows_served(self):
        return sum(n["rows_served"] for n in self.cluster()["nodes"])


def make_model(folder, shape):
    """A model with random weights; `shape` as of `moesaic bench model`."""
    subprocess.run([BIN / "moesaic", "bench", "model", "--make", folder, "--shape", shape], check=True, stderr=subprocess.DEVNULL)


class Cluster(Api):
    """`moesaic up` with the given options; a context manager that leaves nothing behind."""

    def __init__(self, model, *options, nodes=0, env=None, ready=60, programs=BIN):
        self.folder = tempfile.TemporaryDirectory()
        self.ready_file = pathlib.Path(self.folder.name) / "ready.json"
        self.log = open(pathlib.Path(self.folder.name) / "log", "w+")
        args = [programs / "moesaic", "up", model, "--nodes", nodes, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0",
                "--ready-file", self.ready_file, *options]
        self.process = subprocess.Popen([str(a) for a in args], stdout=self.log, stderr=self.log, env={**os.environ, **(env or {})})
        try:
            wait_for("ready file", lambda: self.ready_file.exists() or self.process.poll() is not None, ready)
            if self.process.poll() is not None:
                raise AssertionError(f"up ended with {self.process.returncode}")
        except AssertionError as e:
            self.close()
            raise AssertionError(f"{e}\n{self.output()}") from None

    def output(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text()

    @property
    def facts(self):
        return json.loads(self.ready_file.read_text())

    @property
    def url(self):
        return self.facts["http"]

    def pids(self):
        f = self.facts
        return [f["coordinator"]["pid"], *[n["pid"] for n in f["nodes"]]]

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close()
        if kind is not None:
            print(self.output()[-4000:], file=sys.stderr)


def together(functions):
    """Run all at once, one thread each; their results in order. The first failure is raised."""
    results, failures = [None] * len(functions), []

    def run(i, f):
        try:
            results[i] = f()
        except BaseException as e:  # noqa: BLE001 - reported below
            failures.append(e)

    threads = [threading.Thread(target=run, args=(i, f)) for i, f in enumerate(functions)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failures:
        raise failures[0]
    return results


def read_safetensors(path):
    """name -> (shape, flat list of numbers); F32, I32."""
    raw = pathlib.Path(path).read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    out = {}
    for name, t in json.loads(raw[8:8 + n]).items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        kind = {"F32": "f", "I32": "i"}[t["dtype"]]
        out[name] = (t["shape"], struct.unpack(f"<{(end - begin) // 4}{kind}", raw[8 + n + begin:8 + n + end]))
    return out


def run_tests(tests):
    """Run functions named test_*; a line each; exit code 1 if one fails. Arguments choose by part of the name."""
    wanted = sys.argv[1:]
    chosen = [t for t in tests if not wanted or any(w in t.__name__ for w in wanted)]
    failed = 0
    for t in chosen:
        began = time.monotonic()
        try:
            t()
            verdict = "ok"
        except Exception as e:  # noqa: BLE001 - one line says what failed
            failed += 1
            lines = str(e).splitlines() or [repr(e)]
            verdict = f"FAILED: {type(e).__name__}: {lines[0]}"
            print("\n".join(lines[1:]), file=sys.stderr)
        print(f"{t.__name__} {verdict} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)
