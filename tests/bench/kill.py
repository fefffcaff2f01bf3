#!/usr/bin/env python3
"""How long do streams stand still when a node is killed? Three nodes, each expert on two; one is killed while all streams decode.

    tests/bench/kill.py [--kills 20] [--streams 8] [--model DIR] [--tokens 300]

Per kill and stream: the longest wait for a token in the half second behind the kill, less the longest one in the half second
before it, which has the same company, machine and client; and beside it the same of two half seconds without a kill, which is what
the machine does by itself. Prints median, 99th percentile and the worst; the goal is a 99th percentile of at most 50 ms on loopback.
Every answer must be that of undisturbed streams. Standard library only; MOESAIC_BIN: the folder of the programs (default build/bin).
"""
import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

from cluster import DEMO, wait_for  # noqa: E402
from machines import Machines  # noqa: E402
from streams import Asked  # noqa: E402

WINDOW_S = 0.5
GOAL_MS = 50


def ask(m, streams, tokens):
    return [Asked(m.url, dict(prompt=[300 + 11 * i + j for j in range(6)], max_tokens=tokens, temperature=0.8 * (i % 2), seed=i))
            for i in range(streams)]


def longest_wait(times, begin, end):
    """The longest time without a token that touches [begin, end]; a wait that goes on beyond it counts whole."""
    known = [t for t in times if t <= begin][-1:] + [t for t in times if begin < t <= end] + [t for t in times if t > end][:1]
    return max((b - a for a, b in zip(known, known[1:])), default=0.0)


def one_kill(m, victim, o):
    """Milliseconds per stream that a kill added, and that nothing added; rows that were asked again; the tokens."""
    replayed = m.cluster()["engine"]["rows_replayed"]
    asked = ask(m, o.streams, o.tokens)
    wait_for("all streams to decode", lambda: all(len(a.times) > 20 for a in asked))
    time.sleep(2 * WINDOW_S)
    moment = time.monotonic()
    m.nodes[victim].kill()
    tokens = [a.ended().tokens for a in asked]
    assert all(a.error is None for a in asked), [a.error for a in asked]
    assert all(a.times[-1] > moment + WINDOW_S for a in asked), "a stream ended too early: more --tokens"
    waits = [[1000 * longest_wait(a.times, moment + at * WINDOW_S, moment + (at + 1) * WINDOW_S) for at in (-2, -1, 0)] for a in asked]
    added, by_itself = [after - before for _, before, after in waits], [later - first for first, later, _ in waits]
    replayed = m.cluster()["engine"]["rows_replayed"] - replayed
    m.start_node(victim)
    m.wait_ready()
    return added, by_itself, replayed, tokens


def summary(ms):
    ms = sorted(ms)
    p99 = ms[min(len(ms) - 1, int(0.99 * len(ms)))]
    return p99, f"median {statistics.median(ms):.1f} ms, 99th percentile {p99:.1f} ms, at most {ms[-1]:.1f} ms"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--kills", type=int, default=20)
    a.add_argument("--streams", type=int, default=8)
    a.add_argument("--tokens", type=int, default=300)
    a.add_argument("--model", type=pathlib.Path, default=DEMO)
    o = a.parse_args()
    added, by_itself, n_replayed = [], [], 0
    with Machines(o.model, 3, replicas=2) as m:
        want = [s.ended().tokens for s in ask(m, o.streams, o.tokens)]
        for kill in range(o.kills):
            ms, without, replayed, tokens = one_kill(m, kill % 3, o)
            assert tokens == want, "a kill changed an answer"
            added += ms
            by_itself += without
            n_replayed += replayed
            print(f"  kill {kill + 1:2d}: node {kill % 3}, {replayed:3d} rows asked again; added wait {statistics.median(ms):6.1f} ms, at most {max(ms):6.1f} ms",
                  flush=True)
    assert n_replayed > 0, "no kill met work under way"
    p99, text = summary(added)
    print(f"{o.kills} kills, {o.streams} streams, all answers equal; waits that\n  a kill added: {text} (goal: {GOAL_MS} ms{'' if p99 <= GOAL_MS else ', missed'})\n"
          f"  nothing added: {summary(by_itself)[1]}")


if __name__ == "__main__":
    main()
