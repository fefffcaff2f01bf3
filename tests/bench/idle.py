#!/usr/bin/env python3
"""What 256 connections that are open and say nothing cost the others: one process with the demonstration model, in turn with and
without them.

    tests/bench/idle.py [--connections 256] [--rounds 5] [--tokens 200]

Prints medians over the rounds: round trips of GET /readyz on one connection (median and 99th percentile of 1000 each), tokens per second
of one stream, and the processor time that the coordinator takes in a second in which nobody asks anything.
Standard library only; MOESAIC_BIN: the folder of the programs (default build/bin).
"""
import argparse
import http.client
import os
import pathlib
import statistics
import sys
import time
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

from cluster import DEMO, Cluster  # noqa: E402
from streams import Asked  # noqa: E402


def readyz(connection):
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200


def connect(url):
    u = urllib.parse.urlparse(url)
    c = http.client.HTTPConnection(u.hostname, u.port, timeout=30)
    readyz(c)
    return c


def processor_seconds(pid):
    words = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def measure(c, tokens):
    """Round trip in us, median and 99th percentile; tokens/s; share of a core while nothing is asked."""
    connection, trips = connect(c.url), []
    for _ in range(1000):
        began = time.perf_counter()
        readyz(connection)
        trips.append(1e6 * (time.perf_counter() - began))
    trips.sort()
    asked = Asked(c.url, dict(prompt=[300, 311, 322], max_tokens=tokens, temperature=0))
    asked.join()
    assert asked.done and len(asked.times) == tokens, (asked.error, asked.failure)
    pid = c.pids()[0]
    time.sleep(0.2)
    busy, began = processor_seconds(pid), time.monotonic()
    time.sleep(2)
    share = (processor_seconds(pid) - busy) / (time.monotonic() - began)
    connection.close()
    return trips[500], trips[990], (tokens - 1) / (asked.times[-1] - asked.times[0]), share


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    a = parser.parse_args()
    found = {0: [], a.connections: []}
    with Cluster(DEMO, nodes=0) as c:
        measure(c, a.tokens)  # warm
        for r in range(2 * a.rounds):
            n = (0, a.connections)[(r + r // 2) % 2]
            idle = [connect(c.url) for _ in range(n)]
            found[n].append(measure(c, a.tokens))
            for connection in idle:
                connection.close()
    print("| idle connections | /readyz, us: median | p99 | one stream, tokens/s | a core while nobody asks |\n| --- | --- | --- | --- | --- |")
    for n, rows in found.items():
        trip, late, rate, share = (statistics.median(column) for column in zip(*rows))
        print(f"| {n} | {trip:.0f} | {late:.0f} | {rate:.0f} | {100 * share:.1f} % |")


if __name__ == "__main__":
    main()
