"""Nodes that are killed, stopped and started again, at every phase of their work, while eight streams run: with a copy of each
expert left, and when one node comes back, all answers are complete and equal, bit for bit, to those of an undisturbed cluster; with
none left, they end in one clear error at their deadline that says "ask again". Half of the streams are the official OpenAI client's.

    python3 tests/integration/test_faults.py [WORD...]                 the table, and 20 cycles
    python3 tests/integration/test_faults.py --cycles 300 [--seed S]   only cycles: memory, descriptors and threads stay flat"""
import argparse
import os
import random
import signal
import sys
import time

import streams
from cluster import DEMO, run_tests, together, wait_for
from machines import Machines
from streams import Asked

N_STREAMS = 8
N_TOKENS = 40
SLOW_US = 3000       # per layer and node: makes every phase wide enough to be hit
SLOW_LOAD_US = 10000  # per expert
AT_ONCE = 5          # clusters
N_CYCLES, SEED = 20, 1


def asks():
    """Short prompts, which decode at once, and long ones of several passes; greedy and sampled."""
    rng = random.Random(4)
    return {kind: [dict(prompt=[rng.randrange(3, 4000) for _ in range(n + i)], max_tokens=N_TOKENS, temperature=0.9 * (i % 2), seed=i)
                   for i in range(N_STREAMS)] for kind, n in (("short", 5), ("long", 70))}


ASKS = asks()


class Scene:
    """One fault: a cluster, the node it happens to, and the streams under way."""

    def __init__(self, m, victim, kind, patience=90):
        self.m, self.victim, self.kind, self.patience = m, victim, kind, patience
        self.others = [i for i in range(len(m.nodes)) if i != victim]
        self.asked = []
        self.before = m.cluster()["engine"]
        self.lost_before = m.said("coordinator").count("lost: ")
        self.loaded_before = m.said(f"node-{victim}").count("holds what it was assigned")

    def begin(self):
        self.asked = [Asked(self.m.url, a, official=streams.openai is not None and i % 2 == 0, patience=self.patience)
                      for i, a in enumerate(ASKS[self.kind])]

    def signal(self, number):
        self.m.nodes[self.victim].signal(number)

    def stop(self):
        self.signal(signal.SIGSTOP)

    def kill(self):
        self.m.nodes[self.victim].kill()

    def start(self, slow_us=None):
        self.m.start_node(self.victim, slow_us)

    def node(self):
        return self.m.cluster()["nodes"][self.victim]

    def engine(self, name):
        """How much a counter of the engine grew since the scene began."""
        return self.m.cluster()["engine"][name] - self.before[name]

    def lost(self):
        """How often the coordinator lost the victim's decode lane."""
        return self.m.said("coordinator").count("lost: ") - self.lost_before

    def answers(self):
        return [a.answer() for a in self.asked]

    def ended(self):
        return [a for a in self.asked if not a.is_alive()]


# ---- phases: bring a cluster to the moment, strike, and prove that it was the moment -----------------------------


def hold(s, nodes, condition, what):
    """Stops these nodes at a moment when the condition holds although they stand still."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for i in nodes:
            s.m.nodes[i].signal(signal.SIGSTOP)
        time.sleep(0.01)  # what they had sent already arrives
        give_up = time.monotonic() + 0.1  # before their silence is noticed
        while time.monotonic() < give_up:
            if condition(s.m.cluster()["nodes"]):
                return
        release(s, nodes)
        time.sleep(0.02)
    raise AssertionError(f"{what}: that moment never came")


def release(s, nodes):
    for i in nodes:
        s.m.nodes[i].signal(signal.SIGCONT)


def strike_while_it_owes(s, strike):
    hold(s, [s.victim], lambda nodes: nodes[s.victim]["in_flight"] > 0, "the victim owes a step")
    if strike != s.stop:
        strike()


def loading(s, strike):
    s.kill()
    wait_for("the loss to be seen", lambda: s.node()["state"] == "connecting")
    s.begin()
    s.start(SLOW_LOAD_US)
    wait_for("the node to load", lambda: s.node()["state"] == "loading")
    strike()
    assert s.m.said(f"node-{s.victim}").count("holds what it was assigned") == s.loaded_before, "it had loaded already"


def idle(s, strike):
    assert s.m.cluster()["engine"]["running"] == 0
    strike()
    s.begin()


def prefill(s, strike):
    s.begin()
    wait_for("prompts to be computed", lambda: s.engine("tokens_prefilled") > 0)
    strike_while_it_owes(s, strike)
    n = sum(len(a["prompt"]) for a in ASKS[s.kind])
    assert s.engine("tokens_prefilled") < n, "the prompts were done"


def decoding(s):
    s.begin()
    wait_for("all streams to decode", lambda: all(len(a.tokens) >= 2 for a in s.asked) or s.ended())
    assert not s.ended(), f"a stream ended too early: {s.ended()[0].ended()}"


def decode(s, strike):
    decoding(s)
    strike_while_it_owes(s, strike)
    assert not s.ended(), "a stream had ended"


def between_layers(s, strike):
    """The victim has answered for this layer, another node has not: it is struck before it is asked for the next one."""
    decoding(s)
    try:
        hold(s, s.others, lambda nodes: nodes[s.victim]["in_flight"] == 0 and any(nodes[i]["in_flight"] for i in s.others), "between layers")
        strike()
        assert not s.ended(), "a stream had ended"
    finally:
        release(s, s.others)


PHASES = {"loading": loading, "idle": idle, "prefill": prefill, "decode": decode, "between layers": between_layers}


# ---- faults ------------------------------------------------------------------------------------------------------
# Each runs one scene to the end of its streams, and returns what it saw. Its node is there again afterwards, but for `killed`.


def wait_until_waiting(s):
    """No copy is left: requests wait, in plain view."""
    wait_for("requests that wait for experts", lambda: s.m.cluster()["engine"]["passes_waiting_for_experts"] > 0)
    assert not s.ended(), "an answer came with experts missing"


def killed(s, phase, replicas):
    assert replicas > 1
    PHASES[phase](s, s.kill)
    return s.answers()


def restarted(s, phase, replicas):
    PHASES[phase](s, s.kill)
    if replicas == 1:
        wait_until_waiting(s)
    s.start()
    return s.answers()


def stopped_shortly(s, phase, replicas):
    """Shorter than the limit after which a silent connection counts as dead (6 s): nothing is lost, but others take its work."""
    PHASES[phase](s, s.stop)
    try:
        if replicas > 1 and phase in ("idle", "decode", "between layers"):
            wait_for("its work to go to others", lambda: s.engine("rows_replayed") > 0)
        else:
            time.sleep(1)
        if replicas == 1:
            assert not s.ended(), "an answer came with experts missing"
        assert s.node()["state"] == ("loading" if phase == "loading" else "ready"), s.node()
    finally:
        s.signal(signal.SIGCONT)
    return s.answers()


def stopped_long(s, phase, replicas):
    """Longer: its connection is given up, and it comes back as it was."""
    PHASES[phase](s, s.stop)
    try:
        if replicas > 1:
            got = s.answers()
        wait_for("its connection to be given up", lambda: s.node()["state"] == "connecting")
        if replicas == 1:
            wait_until_waiting(s)
    finally:
        s.signal(signal.SIGCONT)
    return got if replicas > 1 else s.answers()


FAULTS = {"killed": killed, "restarted": restarted, "stopped shortly": stopped_shortly, "stopped long": stopped_long}


def play(m, fault, phase, replicas, victim, want):
    """One scene on a running cluster, and what must hold afterwards. Returns the rows that were computed again."""
    s = Scene(m, victim, "long" if phase == "prefill" else "short")
    got = FAULTS[fault](s, phase, replicas)
    for i, (g, w) in enumerate(zip(got, want[s.kind])):
        assert g == w, f"stream {i} changed\n got {g[:400]}\nwant {w[:400]}"
    assert len(got) == N_STREAMS
    replayed, lost = s.engine("rows_replayed"), s.lost()
    if phase in ("prefill", "decode") and fault != "stopped shortly":
        assert replayed > 0, "nothing had to be asked again"
    if fault == "stopped shortly":
        assert lost == (phase == "loading"), "it was not that short"  # loading begins with a kill
    elif phase != "loading":
        assert lost > 0, "the coordinator never lost it"
    wait_for("an empty cache", lambda: m.cluster()["engine"]["kv_blocks_used"] == 0 and m.cluster()["engine"]["running"] == 0)
    assert not any(n["in_flight"] for n in m.cluster()["nodes"])
    if fault != "killed":
        m.wait_ready()
    return replayed


def cluster_of(replicas, *options):
    return Machines(DEMO, 2 if replicas == 1 else 3, "--chunk", 16, *options, replicas=replicas, slow_us=SLOW_US)


def undisturbed():
    with Machines(DEMO, 2, "--chunk", 16) as m:
        return {kind: together([Asked(m.url, a).answer for a in ASKS[kind]]) for kind in ASKS}


WANT = {}


def want():
    if not WANT:
        if streams.openai is not None:
            streams.official_client()
        WANT.update(undisturbed())
        assert len(set(WANT["short"] + WANT["long"])) == 2 * N_STREAMS
    return WANT


def one_scene(fault, phase, replicas):
    with cluster_of(replicas) as m:
        replayed = play(m, fault, phase, replicas, 1, want())
        return f"  {fault}, {phase}, replicas {replicas}: {N_STREAMS} answers equal, {replayed} rows asked again"


def run_cells(cells, run=one_scene):
    """All of the cells, AT_ONCE at a time, each on a cluster of its own."""
    want()

    def named(fault, phase, replicas):
        try:
            return run(fault, phase, replicas)
        except Exception as e:
            raise AssertionError(f"{fault}, {phase}, replicas {replicas}: {e}") from e

    for at in range(0, len(cells), AT_ONCE):
        print("\n".join(together([lambda c=c: named(*c) for c in cells[at:at + AT_ONCE]])), flush=True)


def test_a_killed_node_is_not_missed_while_a_copy_is_left():
    run_cells([("killed", p, 2) for p in PHASES])


def test_a_node_that_is_started_again_goes_on():
    run_cells([("restarted", p, r) for r in (1, 2) for p in PHASES])


def test_a_node_that_sleeps_shortly_is_kept():
    run_cells([("stopped shortly", p, r) for r in (1, 2) for p in PHASES])


def test_a_node_that_sleeps_long_is_given_up_and_taken_back():
    run_cells([("stopped long", p, r) for r in (1, 2) for p in PHASES])


# ---- nothing left -------------------------------------------------------------------------------------------------


def hopeless(fault, phase, replicas):
    """No copy is left, and none comes back in time: each stream ends in one error at its deadline; afterwards all is as before."""
    w = want()
    with cluster_of(replicas, "--request-timeout", 4) as m:
        s = Scene(m, 1, "long" if phase == "prefill" else "short", patience=30)
        victims = [1] if replicas == 1 else [1, 2]

        def strike():
            for i in victims:
                m.nodes[i].kill() if fault == "killed" else m.nodes[i].signal(signal.SIGSTOP)

        PHASES[phase](s, s.stop if fault == "stopped" else strike)
        by_http = 0
        for a in s.asked:
            a.ended()
            assert a.error is not None and not a.done, "an answer without its experts"
            assert a.error["status"] in (503, 504) and "deadline" in a.error["message"], a.error
            assert a.http_status == 200 if a.tokens else a.http_status == 200 or a.retry_after, a.error
            by_http += a.http_status != 200
        if fault == "killed":
            assert any("no node holds expert" in a.error["message"] for a in s.asked), [a.error for a in s.asked]
        wait_for("an empty cache", lambda: m.cluster()["engine"]["kv_blocks_used"] == 0 and m.cluster()["engine"]["running"] == 0)
        for i in victims:
            m.nodes[i].signal(signal.SIGCONT) if fault == "stopped" else m.start_node(i)
        m.wait_ready()
        got = together([Asked(m.url, a).answer for a in ASKS[s.kind]])
        assert got == w[s.kind]
        return f"  {fault}, {phase}, replicas {replicas}: {by_http} errors by HTTP, {N_STREAMS - by_http} in the stream, then {N_STREAMS} answers equal"


def test_with_no_copy_left_each_stream_ends_once_at_its_deadline():
    run_cells([("killed", p, r) for r in (1, 2) for p in PHASES] + [("stopped", p, 1) for p in PHASES], hopeless)


def test_the_official_client_gets_its_answer_by_asking_again():
    """The error at the deadline is one that its own retries take for what it is."""
    if streams.openai is None:
        return
    with cluster_of(1, "--request-timeout", 1) as m:
        m.nodes[1].kill()
        client = streams.official_client().with_options(base_url=m.url + "/v1", max_retries=30, timeout=60)
        ask = dict(ASKS["short"][0], max_tokens=2)

        def complete():
            return client.completions.create(model=DEMO.name, extra_body={"ignore_eos": True}, **ask).choices[0].text

        def come_back():
            for _ in range(3):  # refusals
                wait_for("a request to run", lambda: m.cluster()["engine"]["running"] > 0)
                wait_for("its deadline", lambda: m.cluster()["engine"]["running"] == 0)
            m.start_node(1)

        got = together([complete, come_back])[0]
        assert got == complete()


# ---- cycles -------------------------------------------------------------------------------------------------------


def held_by(pid):
    """Resident bytes, descriptors, threads of a process."""
    with open(f"/proc/{pid}/status") as f:
        lines = dict(l.split(":", 1) for l in f)
    return int(lines["VmRSS"].split()[0]) << 10, len(os.listdir(f"/proc/{pid}/fd")), int(lines["Threads"])


def random_scene(rng, replicas):
    fault = rng.choices(list(FAULTS), (3 if replicas > 1 else 0, 4, 2, 0.5))[0]
    phase = rng.choice(list(PHASES))
    # Node 0 is never killed: it is the survivor whose memory is watched.
    first = 0 if fault.startswith("stopped") and phase != "loading" else 1
    return fault, phase, rng.randrange(first, 2 if replicas == 1 else 3)


def lane_of_cycles(replicas, n, seed):
    """n cycles on one cluster; per cycle what coordinator and node 0 hold afterwards: [(rss, fds, threads), (...)]."""
    rng, table = random.Random(f"{seed} {replicas}"), []
    with cluster_of(replicas) as m:
        for cycle in range(n):
            fault, phase, victim = random_scene(rng, replicas)
            try:
                replayed = play(m, fault, phase, replicas, victim, want())
                if fault == "killed" or phase == "loading":  # as it was: here, and not slowed down
                    m.nodes[victim].kill()
                    wait_for("the loss to be seen", lambda: m.state(victim) == "connecting")
                    m.start_node(victim)
                    m.wait_ready()
            except Exception as e:
                raise AssertionError(f"cycle {cycle} of seed {seed}: {fault}, {phase}, node {victim}, replicas {replicas}: {e}") from e
            time.sleep(0.1)  # closed connections of clients leave
            now = [held_by(m.coordinator.pid), held_by(m.nodes[0].pid)]
            table.append(now)
            text = "  ".join(f"{rss / 2**20:6.1f} MiB {fds:3d} fds {threads:3d} threads" for rss, fds, threads in now)
            print(f"  {cycle:3d}  {replicas} replicas  {fault + ', ' + phase + ', node ' + str(victim):40s} {replayed:4d} again | {text}", flush=True)
    return table


def check_flat(name, rows):
    """The second half holds no more than the first one after its warm-up; a little for what the allocator keeps."""
    warm = rows[len(rows) // 5:]
    first, last = warm[:len(warm) // 2], warm[len(warm) // 2:]
    for i, (what, more) in enumerate((("resident bytes", 3 << 20), ("descriptors", 2), ("threads", 2))):
        a, b = max(r[i] for r in first), max(r[i] for r in last)
        assert b <= a + more, f"{name}: {what} grow: at most {a} in the first half, {b} in the second"


def cycles(n, seed):
    print(f"  seed {seed}; after each cycle: coordinator | node 0, which is never killed")
    want()
    tables = together([lambda r=r: lane_of_cycles(r, n // 2, seed) for r in (1, 2)])
    for replicas, table in zip((1, 2), tables):
        for i, name in enumerate(("coordinator", "node 0")):
            check_flat(f"{name}, replicas {replicas}", [row[i] for row in table])


def test_cycles_of_faults_leave_nothing_behind():
    cycles(N_CYCLES, SEED)


if __name__ == "__main__":
    if streams.openai is None and os.environ.get("MOESAIC_REQUIRE_OPENAI"):
        sys.exit("MOESAIC_REQUIRE_OPENAI is set, and the package openai is missing")
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("words", nargs="*")
    a.add_argument("--cycles", type=int)
    a.add_argument("--seed", type=int, default=1)
    o = a.parse_args()
    SEED, N_CYCLES = o.seed, o.cycles or N_CYCLES
    sys.argv[1:] = o.words
    run_tests([test_cycles_of_faults_leave_nothing_behind] if o.cycles else [f for n, f in list(globals().items()) if n.startswith("test_")])
