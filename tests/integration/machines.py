"""A coordinator and nodes that are started one by one, each as if on a machine of its own: every one can be killed, stopped
and started again when the test says so. `cluster.Cluster` is `moesaic up`, which decides that itself. Standard library only."""
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile

from cluster import BIN, Api, wait_for


def quiet_port():
    """A free port below those that the kernel hands out: a node that is away finds its port free when it comes back."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Process:
    """One process, its log, and the socket by which it sees this script end."""

    def __init__(self, args, log, env, prefix=()):
        self.ours, theirs = socket.socketpair()
        os.set_inheritable(theirs.fileno(), True)
        with theirs, open(log, "a") as out:
            self.process = subprocess.Popen([*prefix, *map(str, args), f"--parent-fd={theirs.fileno()}"], stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=out, env={**os.environ, **env}, pass_fds=[theirs.fileno()], start_new_session=True)
        self.pid = self.process.pid

    def signal(self, number):
        if self.process.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.ours.close()


class Machines(Api):
    """A context manager. `prefix(i)` is put before the command of node i (None: the coordinator); `host(i)` is where node i listens."""

    def __init__(self, model, nodes, *options, replicas=1, env=None, slow_us=0, prefix=lambda i: (), host=lambda i: "127.0.0.1", node_options=()):
        self.folder = tempfile.TemporaryDirectory()
        self.model, self.env, self.slow_us = model, env or {}, slow_us
        self.prefix, self.node_options = prefix, node_options
        self.addresses = [f"{host(i)}:{quiet_port()}" for i in range(nodes)]
        self.nodes, self.coordinator = [None] * nodes, None
        self.url = f"http://{host(None)}:{quiet_port()}"
        self.options = ["--replicas", replicas, "--nodes", ",".join(self.addresses), "--http", self.url.removeprefix("http://"),
                        "--grpc", f"{host(None)}:0", *options]
        try:
            for i in range(nodes):
                self.start_node(i)
            self.start_coordinator()
            self.wait_ready(60)
        except BaseException as e:
            self.close()
            raise AssertionError(f"{e}\n{self.output()}") from None

    def log(self, name):
        return pathlib.Path(self.folder.name) / name

    def output(self):
        return "".join(f"-- {f.name}\n{f.read_text()}" for f in sorted(pathlib.Path(self.folder.name).iterdir()))

    def start_node(self, i, slow_us=None):
        args = [BIN / "moesaic-node", self.model, "--listen", self.addresses[i], "--id", f"node-{i}", "--threads", 1, "--spin-us", 0,
                "--slow-us", self.slow_us if slow_us is None else slow_us, *self.node_options]
        self.nodes[i] = Process(args, self.log(f"node-{i}"), self.env, self.prefix(i))

    def start_coordinator(self):
        args = [BIN / "moesaic-coordinator", self.model, "--threads", 1, "--spin-us", 0, *self.options]
        self.coordinator = Process(args, self.log("coordinator"), self.env, self.prefix(None))

    def is_ready(self):
        if self.coordinator.process.poll() is not None:
            raise AssertionError(f"the coordinator ended with {self.coordinator.process.returncode}")
        try:
            return all(n["state"] == "ready" for n in self.cluster()["nodes"])
        except OSError:
            return False

    def wait_ready(self, seconds=30.0):
        wait_for("all nodes ready", self.is_ready, seconds)

    def state(self, i):
        return self.cluster()["nodes"][i]["state"]

    def said(self, name):
        return self.log(name).read_text()

    def close(self):
        for p in [self.coordinator, *self.nodes]:
            if p is not None:
                p.kill()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close()
        if kind is not None:
            print(self.output()[-6000:], file=sys.stderr)
        self.folder.cleanup()
