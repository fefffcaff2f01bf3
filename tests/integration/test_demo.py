"""What a stranger runs first: `moesaic demo` tells its story, survives a kill, and leaves nothing behind however it ends."""
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile

from cluster import BIN, DEMO, alive, run_tests, wait_for


class Demo:
    """`moesaic demo` with a temporary folder of its own, by which all its processes are known."""

    def __init__(self, *options):
        self.folder = tempfile.TemporaryDirectory(prefix="moesaic-")
        self.process = subprocess.Popen([BIN / "moesaic", "demo", DEMO, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        env={**os.environ, "TMPDIR": self.folder.name})

    def end(self):
        """(exit code, output)"""
        out = self.process.communicate(timeout=60)[0].decode()
        return self.process.returncode, out

    def until(self, text):
        seen = b""
        while text not in seen:
            piece = os.read(self.process.stdout.fileno(), 4096)
            assert piece, f"ended before {text!r}: {seen!r}"
            seen += piece
        return seen

    def processes(self):
        mark, found = f"TMPDIR={self.folder.name}".encode(), []
        for p in pathlib.Path("/proc").iterdir():
            try:
                if p.name.isdigit() and mark in (p / "environ").read_bytes().split(b"\0") and alive(int(p.name)):
                    found.append(int(p.name))
            except OSError:
                pass
        return found

    def check_nothing_left(self, seconds=0.0, files=True):
        if seconds:
            wait_for("all processes ended", lambda: not self.processes(), seconds)
        assert self.processes() == []
        assert not files or os.listdir(self.folder.name) == []


def shares(out):
    return [int(rows) for rows in re.findall(r"^  node-\d +\S+ +\S+ +\d+ +\S+ MiB +(\d+) ", out, re.M)]


def test_the_demo_tells_a_story_and_leaves_nothing():
    d = Demo()
    code, out = d.end()
    assert code == 0, out
    assert "Once upon a time there was a fox who had many children" in out, out
    rows = shares(out)
    tokens = int(re.search(r"(\d+) prompt tokens", out)[1]) + int(re.search(r"(\d+) generated", out)[1])
    # 6 layers, top 4; the last token is never computed on.
    assert len(rows) == 3 and min(rows) > 0 and sum(rows) == (tokens - 1) * 24, (rows, tokens)
    d.check_nothing_left()


def test_a_node_killed_in_the_middle_changes_no_byte():
    d = Demo("--kill-a-node")
    code, out = d.end()
    assert code == 0, out
    assert "kill -9" in out and "The same answer, byte for byte" in out, out
    assert int(re.search(r"(\d+) rows replayed", out)[1]) > 0, out
    d.check_nothing_left()


def test_ctrl_c_ends_everything():
    for text in (b"Starting", b"ready after", b"Once upon a time", b"Once upon a time there was a fox who"):
        d = Demo("--max-tokens", "400")
        d.until(text)
        d.process.send_signal(signal.SIGINT)
        code, out = d.end()
        assert code == 130, (code, out)
        d.check_nothing_left()


def test_nothing_outlives_a_killed_demo():
    d = Demo("--max-tokens", "400")
    d.until(b"Once upon a time")
    d.process.kill()
    d.end()
    d.check_nothing_left(seconds=15, files=False)


def test_keep_leaves_a_cluster_that_answers_and_stops():
    d = Demo("--keep", "--max-tokens", "8", "--nodes", "2")
    code, out = d.end()
    assert code == 0, out
    http = re.search(r"HTTP http://(\S+)", out)[1]
    assert len(d.processes()) == 4, d.processes()
    status = subprocess.run([BIN / "moesaic", "status", "--http", http], capture_output=True, text=True)
    assert status.returncode == 0, status.stdout + status.stderr
    os.kill(int(re.search(r"^  kill (\d+)", out, re.M)[1]), signal.SIGTERM)
    d.check_nothing_left(seconds=15, files=False)


def test_wrong_input_is_one_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        for options, want in ((["--kill-a-node", "--nodes", "1"], "--kill-a-node needs"),
                              (["--nodes", "2", "--replicas", "3"], "more than --nodes=2"), (["--http", address], address)):
            d = Demo(*options)
            code, out = d.end()
            assert code != 0 and want in out, (options, code, out)
            d.check_nothing_left()


if __name__ == "__main__":
    run_tests([v for k, v in list(globals().items()) if k.startswith("test_")])
