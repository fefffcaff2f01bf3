"""Coordinator and nodes as on machines of their own: each in a network namespace, joined by a bridge, so that a link can be cut
without either end being told. Answers are those of one process.

Everything is made inside a namespace of this script's own (unshare) and goes with it: nothing is left on the machine, however
it ends. Where that is not permitted, the tests are skipped and say so."""
import os
import subprocess
import sys
import threading
import time

import streams
from cluster import DEMO, Cluster, run_tests, together, wait_for
from machines import Machines
from streams import Asked
from test_faults import play, want

INSIDE = "MOESAIC_TEST_INSIDE_NAMESPACE"
NET = "10.77.0."
CUT_S = 10
SLOW_US = 3000
ASKS = [dict(prompt=[300 + 7 * i + j for j in range(9 + i)], max_tokens=150, temperature=0.8 * (i % 2), seed=i) for i in range(8)]


def ip(*args):
    subprocess.run(["ip", *map(str, args)], check=True)


class Hosts:
    """A coordinator and nodes, each in a namespace with one link to the bridge."""

    made, lock = 0, threading.Lock()

    def __init__(self, nodes):
        with Hosts.lock:
            first = Hosts.made
            Hosts.made += nodes + 1
        self.names = {i: f"h{first + n}" for n, i in enumerate([None, *range(nodes)])}
        for name in self.names.values():
            ip("netns", "add", name)
            ip("link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", "bridge0", "up")
            ip("-n", name, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")

    @staticmethod
    def address(name):
        return f"{NET}{10 + int(name[1:])}"

    def cluster(self, replicas):
        return Machines(DEMO, len(self.names) - 1, "--chunk", 16, "--insecure", replicas=replicas, slow_us=SLOW_US, node_options=["--insecure"],
                        prefix=lambda i: ("ip", "netns", "exec", self.names[i]), host=lambda i: self.address(self.names[i]))

    def link(self, i, state):
        ip("link", "set", self.names[i], state)


WANT = []


def one_process():
    """What a process without nodes and without a network answers."""
    if not WANT:
        with Cluster(DEMO, "--chunk", 16, nodes=0) as c:
            WANT.extend(together([Asked(c.url, a).answer for a in ASKS]))
    return WANT


def cut(replicas):
    hosts = Hosts(2)
    with hosts.cluster(replicas) as m:
        asked = [Asked(m.url, a, official=streams.openai is not None and i % 2 == 0) for i, a in enumerate(ASKS)]
        wait_for("all streams to decode", lambda: all(len(a.tokens) >= 5 for a in asked))
        hosts.link(1, "down")
        began = time.monotonic()
        assert all(a.is_alive() for a in asked), "a stream had ended"
        wait_for("the node to be given up", lambda: m.state(1) == "connecting")
        if replicas == 1:
            tokens = [len(a.tokens) for a in asked]
            wait_for("requests that wait", lambda: m.cluster()["engine"]["passes_waiting_for_experts"] > 0)
        else:
            got = [a.answer() for a in asked]  # while it is away
        time.sleep(max(0, began + CUT_S - time.monotonic()))
        if replicas == 1:
            assert [len(a.tokens) for a in asked] == tokens, "a token came with experts missing"
        hosts.link(1, "up")
        if replicas == 1:
            got = [a.answer() for a in asked]
        m.wait_ready()
        assert got == one_process(), f"replicas {replicas}: an answer changed"
        assert m.cluster()["engine"]["rows_replayed"] > 0, "nothing had to be asked again"
        again = together([Asked(m.url, a).answer for a in ASKS])
        assert again == one_process(), f"replicas {replicas}: an answer changed after the link was back"
        return m.cluster()["engine"]["rows_replayed"]


def test_a_cluster_over_several_hosts_answers_as_one_process():
    with Hosts(2).cluster(1) as m:
        assert together([Asked(m.url, a).answer for a in ASKS]) == one_process()
        assert all(n["rows_served"] > 0 for n in m.cluster()["nodes"])


def test_a_node_on_another_host_dies():
    with Hosts(3).cluster(2) as m:
        play(m, "killed", "decode", 2, 1, want())
        m.start_node(1)
        m.wait_ready()
        play(m, "restarted", "prefill", 2, 2, want())


def test_a_link_is_cut_for_ten_seconds():
    one_process()
    one, two = together([lambda r=r: cut(r) for r in (1, 2)])
    print(f"  1 replica: 16 answers equal, {one} rows asked again; 2 replicas: 16 answers equal, {two} rows asked again")


TESTS = [f for n, f in list(globals().items()) if n.startswith("test_")]


def enter():
    """This script again, in namespaces of its own; None if that is not permitted, with the reason."""
    own = ["unshare", "--net", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    setup = ("mount -t tmpfs tmpfs /run && ip link set lo up && ip link add name bridge0 type bridge && "
             f"ip address add {NET}1/24 dev bridge0 && ip link set bridge0 up")
    trial = "ip netns add trial && ip link add name trial type veth peer name eth0 netns trial && ip netns exec trial true"
    try:
        tried = subprocess.run([*own, "sh", "-c", f"{setup} && {trial}"], capture_output=True, text=True, timeout=30)
    except OSError as e:
        return str(e)
    if tried.returncode != 0:
        return (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[0]
    os.environ[INSIDE] = "1"
    os.execvp("unshare", [*own, "sh", "-c", f"{setup} && exec \"$@\"", "sh", sys.executable, *sys.argv])


if __name__ == "__main__":
    if not os.environ.get(INSIDE):
        reason = enter()
        print(f"network namespaces skipped: not permitted here ({reason})")
        print(f"0 passed, 0 failed, {len(TESTS)} skipped")
        sys.exit(0)
    run_tests(TESTS)
