"""Ends in every phase: while things start, load, connect, serve and stream; asked once, twice, by a closed terminal."""
import os
import pathlib
import signal
import subprocess
import tempfile
import time

from cluster import BIN, DEMO, Cluster, Stream, alive, free_port, run_tests, wait_for


class Process:
    def __init__(self, *args, env=None):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([str(a) for a in args], stdout=self.log, stderr=self.log, start_new_session=True,
                                        env={**os.environ, **(env or {})})
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def output(self):
        self.log.seek(0)
        return self.log.read()

    def wait_said(self, text):
        wait_for(text, lambda: text in self.output() or self.process.poll() is not None)
        assert text in self.output(), self.output()

    def end(self, sig=signal.SIGTERM, seconds=10.0):
        """Exit code, after at most so many seconds."""
        began = time.monotonic()
        self.process.send_signal(sig)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"not ended {seconds} s after {sig.name}:\n{self.output()}") from None
        return code, time.monotonic() - began

    def children(self):
        found = []
        for p in pathlib.Path("/proc").iterdir():
            if not p.name.isdigit():
                continue
            try:
                if (p / "stat").read_text().rsplit(")", 1)[1].split()[1] == str(self.pid):
                    found.append(int(p.name))
            except OSError:
                pass
        return found


def up(*options, nodes=3):
    return Process(BIN / "moesaic", "up", DEMO, "--nodes", nodes, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *options)


def test_up_ends_at_any_moment_of_its_start():
    for ms in (0, 5, 10, 20, 40, 60, 80, 120, 200, 300, 500):
        p = up()
        time.sleep(ms / 1000)
        children = p.children()
        code, _ = p.end()
        assert code in (0, -signal.SIGTERM), (ms, code, p.output())
        assert code == 0 or ms < 40, f"after {ms} ms it does not know the signal yet"
        assert not [c for c in children if alive(c)], f"{ms} ms: a child is left"
        assert "Sanitizer" not in p.output() and "Assertion" not in p.output(), p.output()


def test_a_closed_terminal_ends_it_in_order():
    with Cluster(DEMO, nodes=2) as c:
        pids, ready = c.pids(), c.ready_file
        c.process.send_signal(signal.SIGHUP)
        assert c.process.wait(10) == 0
        assert not [p for p in pids if alive(p)] and not ready.exists()


def test_nodes_are_drained_not_cut():
    """Each child gets one signal and says its last line."""
    with Cluster(DEMO, "--log-level", "info", nodes=3) as c:
        c.complete(prompt="Once", max_tokens=4)
        c.process.send_signal(signal.SIGTERM)
        assert c.process.wait(10) == 0
        assert c.output().count("drained, ending") == 4, c.output()


def test_a_stream_is_finished_first_and_a_second_signal_cuts_it():
    for again in (False, True):
        with Cluster(DEMO, nodes=2, env={"MOESAIC_SLOW_US": "3000"}) as c:
            s = Stream(c.url, dict(prompt="Once upon a time", max_tokens=60, ignore_eos=True, temperature=0)).read(3)
            c.process.send_signal(signal.SIGTERM)
            if again:
                time.sleep(0.1)
                began = time.monotonic()
                c.process.send_signal(signal.SIGTERM)
                c.process.wait(10)
                assert time.monotonic() - began < 3
            else:
                s.read()
                assert s.done and s.finish() == "length" and s.error is None, (s.error, c.output())
                assert c.process.wait(20) == 0
            s.close()


def test_the_drain_limit_cuts_what_is_left():
    with Cluster(DEMO, "--drain-timeout", 1, nodes=2, env={"MOESAIC_SLOW_US": "20000"}) as c:
        s = Stream(c.url, dict(prompt="Once upon a time", max_tokens=400, ignore_eos=True)).read(2)
        began = time.monotonic()
        c.process.send_signal(signal.SIGTERM)
        assert c.process.wait(15) == 0
        assert 0.9 < time.monotonic() - began < 10
        s.close()


def coordinator(*nodes):
    return Process(BIN / "moesaic-coordinator", DEMO, "--nodes", ",".join(nodes), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")


def test_a_coordinator_ends_while_it_connects():
    with coordinator(f"127.0.0.1:{free_port()}", f"localhost:{free_port()}") as p:
        time.sleep(1.5)
        assert p.process.poll() is None, p.output()
        code, seconds = p.end()
        assert code == 0 and seconds < 3, (code, seconds, p.output())


def test_a_node_ends_at_once_although_coordinators_are_connected():
    port = free_port()
    with Process(BIN / "moesaic-node", DEMO, "--listen", f"127.0.0.1:{port}") as n:
        n.wait_said("waits for a coordinator")
        with coordinator(f"127.0.0.1:{port}") as c:
            c.wait_said("is ready")
            code, seconds = n.end()
            assert code == 0 and seconds < 2, (code, seconds, n.output())
            c.wait_said("is ending")
            code, seconds = c.end()
            assert code == 0 and seconds < 3, (code, seconds, c.output())


def test_no_descriptor_leaks_into_children():
    with Cluster(DEMO, nodes=3) as c:
        for pid in c.pids():
            inherited = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            pairs = [t for t in inherited if t.startswith("socket:")]
            with open(f"/proc/{pid}/net/unix") as f:
                unix = {line.split()[6] for line in f.readlines()[1:]}
            ours = [t for t in pairs if t[8:-1] in unix]
            assert len(ours) == 1, f"process {pid}: unix sockets {ours}, its own end of the pair is wanted alone"


def test_usage_and_ports_have_their_exit_codes():
    def code(*args):
        p = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=30)
        return p.returncode, p.stderr

    for wrong in (["--nodes"], ["--queue=0"], ["--http=::1"], ["--nodes=127.0.0.1:7,127.0.0.1:7"], ["--nodes=a:0"], ["--http=0.0.0.0"],
                  ["--nodes=h1:1,h2:2", "--replicas=3"]):
        n, text = code(BIN / "moesaic-coordinator", DEMO, *wrong)
        assert n == 2 and text.strip(), (wrong, n, text)
    n, text = code(BIN / "moesaic-coordinator", DEMO, "--nodes=localhost,localhost:7070")
    assert n == 2 and "localhost:7070 is there twice" in text, (n, text)
    n, text = code(BIN / "moesaic-coordinator", "/nowhere")
    assert n != 0 and "/nowhere" in text, (n, text)
    with Cluster(DEMO, nodes=1) as c:
        taken = c.facts["nodes"][0]["address"]
        n, text = code(BIN / "moesaic-node", DEMO, "--listen", taken)
        assert n == 5 and taken in text, (n, text)


def test_a_number_of_nodes_in_the_environment_is_ours_alone():
    with Cluster(DEMO, nodes=0, env={"MOESAIC_NODES": "0"}) as c:
        assert c.complete(prompt="Once", max_tokens=2)


if __name__ == "__main__":
    run_tests([f for name, f in list(globals().items()) if name.startswith("test_")])
