"""Strangers on a node's port, and a node that answers garbage. The first are refused and the node goes on serving; of the
second, what can be told from a right answer is refused, its link closed and the rows asked of the other replica. What cannot be
told, numbers that are wrong and nothing else, is trusted. gRPC is spoken by grpcio."""
import json
import os
import random
import socket
import struct
import threading
import time

import grpc

import expert_wire as wire
from bystander import Bystander
from cluster import DATA, Cluster, alive, request, run_tests, together, wait_for
from machines import Machines

MODEL = DATA / "tiny-qwen3_moe"
SEED = int(os.environ.get("MOESAIC_SEED", "5"))


# ---- strangers --------------------------------------------------------------------------------------

def raw_talk(address, data, wait):
    """Send bytes; what comes back until the other side closes, or until nothing comes for a moment."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 10) as s:
        got = b""
        try:
            s.sendall(data)
            s.settimeout(wait)
            while more := s.recv(65536):
                got += more
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
        return got


def raw_strangers(rng):
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    def frame(kind, flags, stream, payload, length=None):
        n = len(payload) if length is None else length
        return struct.pack(">I", n)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    settings = frame(4, 0, 0, b"")
    return {
        "nothing": b"", "a byte": b"P", "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "a line": b"hello\r\n",
        "TLS": b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03" + rng.randbytes(230), "noise": rng.randbytes(100000), "zeros": bytes(100000),
        "half a preface": preface[:10], "a wrong preface": preface[:-1] + b"X", "noise behind the preface": preface + rng.randbytes(5000),
        "a frame of 16 MiB": preface + settings + frame(0, 0, 1, b"", 0xffffff), "data on no stream": preface + settings + frame(0, 1, 1, b"x"),
        "an unknown frame": preface + settings + frame(99, 0xff, 7, b"x" * 100), "a bad header block": preface + settings + frame(1, 5, 1, b"\xff" * 50),
        "settings that are none": preface + frame(4, 0, 0, b"\0\5\0\0\0\1" * 100 + b"x"), "a window of 2^31": preface + settings + frame(8, 0, 0, b"\x80\0\0\0"),
        "ping without end": preface + settings + frame(6, 0, 0, b"12345678") * 2000, "resets": preface + settings + frame(3, 0, 1, b"\0\0\0\1") * 500,
        "a continuation of nothing": preface + settings + frame(9, 4, 1, b"x"), "endless headers": preface + settings + frame(1, 0, 1, b"\x40\x01a\x01b" * 2000) +
        frame(9, 0, 1, b"\x40\x01a\x01b" * 2000) * 50,
    }


def ends(c, messages, method=wire.STREAM, timeout=20):
    """The code and details with which a stream of these messages (or bytes) ends, and the replies before."""
    def sent():
        for m in messages:
            yield m if isinstance(m, bytes) else m.SerializeToString()
        over.wait(timeout)  # the other side must end it

    replies, over = [], threading.Event()
    call = c.stream_stream(method)(sent(), timeout=timeout)
    try:
        for raw in call:
            replies.append(wire.Reply.FromString(raw))
    except grpc.RpcError as e:
        return e.code(), e.details(), replies
    finally:
        over.set()
        call.cancel()
    return grpc.StatusCode.OK, "", replies


def changed(hello, **fields):
    h = wire.Request()
    h.CopyFrom(hello)
    for k, v in fields.items():
        setattr(h.hello, k, v)
    return h


def test_strangers_on_the_ports_are_refused_and_the_cluster_serves_on():
    rng = random.Random(SEED)
    with Cluster(MODEL, "--ctx", 512, nodes=1) as c:
        node, pids = c.facts["nodes"][0]["address"], c.pids()
        bystander = Bystander(c.url)
        open_files = [len(os.listdir(f"/proc/{p}/fd")) for p in pids]
        try:
            strangers = raw_strangers(rng)
            for where in node, c.facts["grpc"]:
                together([lambda d=d: raw_talk(where, d, 1.0) for d in strangers.values()])
            together([lambda: raw_talk(node, b"", 0.01)] * 50)
            state = c.cluster()["nodes"][0]["state"]
            assert state == "ready" and all(alive(p) for p in pids), (state, SEED)
            wait_for("descriptors are given back", lambda: all(len(os.listdir(f"/proc/{p}/fd")) <= n + 2 for p, n in zip(pids, open_files)))
        finally:
            bystander.end()


def test_strangers_that_speak_grpc_are_told_what_is_wrong():
    code = grpc.StatusCode
    with Cluster(MODEL, "--ctx", 512, nodes=1) as c, wire.channel(c.facts["nodes"][0]["address"]) as node:
        pids, hello = c.pids(), wire.hello_for(node)
        before = wire.describe(node)
        bystander = Bystander(c.url)
        try:
            for method in "/moesaic.v1.ExpertService/NoSuchThing", "/x.Y/Z", "/", "/moesaic.v1.InferenceService/Generate", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":
                assert ends(node, [b"x"], method)[0] == code.UNIMPLEMENTED, method
            for body in b"\xff", os.urandom(1000), bytes(100000):  # Describe asks nothing: what is in it does not matter, or is refused
                try:
                    node.unary_unary(wire.DESCRIBE)(body, timeout=10)
                except grpc.RpcError as e:
                    assert e.code() in (code.INVALID_ARGUMENT, code.INTERNAL), (body[:10], e.code())
            step = wire.Request(kind=wire.STEP, step=1, rows=1, experts=[0], expert_rows=[1], row_index=[0], tensor=bytes(256))
            cases = {
                "no hello": ([step], code.FAILED_PRECONDITION), "a ping before the hello": ([wire.Request(kind=wire.PING)], code.FAILED_PRECONDITION),
                "an assignment before the hello": ([wire.Request(kind=wire.ASSIGN)], code.FAILED_PRECONDITION),
                "garbage": ([b"\xff\xff\xff"], code.INVALID_ARGUMENT), "noise": ([rng_bytes(1, 1000)], code.INVALID_ARGUMENT), "nothing": ([b""], code.INVALID_ARGUMENT),
                "garbage after the hello": ([hello, b"\xff\xff\xff"], code.INVALID_ARGUMENT), "an unknown kind": ([hello, wire.Request(kind=77)], code.INVALID_ARGUMENT),
                "a hello of nothing": ([wire.Request(kind=wire.HELLO)], code.INVALID_ARGUMENT),
                "another digest": ([changed(hello, model_digest="0" * 32)], code.FAILED_PRECONDITION),
                "another protocol": ([changed(hello, protocol=99)], code.FAILED_PRECONDITION), "another numerics": ([changed(hello, numerics=99)], code.FAILED_PRECONDITION),
                "another profile": ([changed(hello, wire_profile=99)], code.FAILED_PRECONDITION), "another packing": ([changed(hello, quantize="q4")], code.FAILED_PRECONDITION),
                "a long name": ([changed(hello, id="x" * 10000)], None), "a large message": ([hello, bytes(80 << 20)], code.RESOURCE_EXHAUSTED),
            }
            for what, (messages, want) in cases.items():
                got, details, replies = ends(node, messages)
                assert got not in (code.OK, code.DEADLINE_EXCEEDED, code.UNAVAILABLE, code.UNKNOWN), f"{what}: {got} {details}"
                assert want is None or got == want, f"{what}: {got} {details}, not {want}"
                assert details, f"{what}: without a word"
                if what.startswith("another "):
                    assert "ours is" in details and "the peer's is" in details and not replies, (what, details)
            # Steps that are wrong are refused one by one: the stream goes on.
            wrong = {"no such layer": dict(layer=2), "no such expert": dict(experts=[6]), "the limit of experts": dict(experts=[1023]), "another format": dict(format=1),
                     "a short tensor": dict(tensor=bytes(255)), "a long tensor": dict(tensor=bytes(257)), "no tensor": dict(tensor=b"")}
            steps = []
            for i, fields in enumerate(wrong.values(), 10):
                q = wire.Request()
                q.CopyFrom(step)
                q.step = i
                for k, v in fields.items():
                    if isinstance(v, list):
                        del getattr(q, k)[:]
                        getattr(q, k).extend(v)
                    else:
                        setattr(q, k, v)
                steps.append(q)
            all_said = threading.Event()

            def sent():  # a stream whose sender has ended is gone, and takes along what waits
                yield from (m.SerializeToString() for m in [hello, *steps, step, wire.Request(kind=wire.PING, step=99)])
                all_said.wait(20)

            replies = node.stream_stream(wire.STREAM, None, wire.Reply.FromString)(sent(), timeout=20)
            got = {}
            for r in replies:
                got[r.step] = r
                if len(got) == len(steps) + 3:
                    break
            all_said.set()
            replies.cancel()
            for what, q in zip(wrong, steps):
                assert got[q.step].kind == wire.ERROR and got[q.step].error_code and got[q.step].error_text, (what, got[q.step])
            assert got[1].kind == wire.RESULT and len(got[1].tensor) == 256 and got[99].kind == wire.PONG
            # Many at once that say nothing; and what malformed steps (which end the stream) say.
            many = [node.stream_stream(wire.STREAM)(iter([hello.SerializeToString()]), timeout=20) for _ in range(100)]
            for m in many:
                m.cancel()
            for fields in dict(rows=0), dict(expert_rows=[2]), dict(row_index=[1]), dict(experts=[]), dict(experts=[0, 0], expert_rows=[1, 1], row_index=[0, 0]), dict(
                    experts=[1, 0], expert_rows=[1, 1], row_index=[0, 0]), dict(expert_rows=[0], row_index=[]), dict(rows=4000000000), dict(layer=4000000000):
                q = wire.Request(**{"kind": wire.STEP, "step": 1, "rows": 1, "experts": [0], "expert_rows": [1], "row_index": [0], "tensor": bytes(256), **fields})
                got, details, _ = ends(node, [hello, q])
                assert got == code.INVALID_ARGUMENT and details, (fields, got, details)
            ends(node, [changed(hello, id="x\nlevel=error injected=1", model_digest="\r\nlevel=error injected=2")])
            wait_for("the refusal is logged", lambda: "injected=2" in c.output())
            assert not any(l.startswith("level=") for l in c.output().splitlines()), "a stranger writes lines of the log"
            after = wire.describe(node)
            assert after.hello.held == before.hello.held and after.hello.incarnation == before.hello.incarnation
            assert c.cluster()["nodes"][0]["state"] == "ready" and all(alive(p) for p in pids)
        finally:
            bystander.end()


def rng_bytes(seed, n):
    return random.Random(SEED + seed).randbytes(n)


# ---- a node that answers garbage -----------------------------------------------------------------------

class Spoiled(Machines):
    """Two nodes that hold everything; what the second says goes through a spoiling one, what the first says through another."""

    def __init__(self):
        self.doors = []
        super().__init__(MODEL, 2, replicas=2)

    def start_coordinator(self):
        self.doors = [wire.SpoilingNode(a) for a in self.addresses]
        at = self.options.index("--nodes") + 1
        self.options[at] = ",".join(d.address for d in self.doors)
        super().start_coordinator()

    def restart_coordinator(self):
        """So that links do not wait before they open again, and complaints are not held back as known."""
        self.coordinator.kill()
        Machines.start_coordinator(self)
        self.wait_ready()

    def ask(self):
        """Three requests at once: (status, tokens and logprobs, or the error)."""
        def one(prompt):
            status, answer, _ = self.post("/v1/completions", {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 3})
            assert isinstance(answer, dict), f"no JSON: {answer[:300]}"
            return status, answer["choices"][0]["logprobs"] if status == 200 else answer["error"]
        return together([lambda p=p: one(p) for p in ("Once upon a time there was a king who had three sons", "The sea", "A fox")])

    def close(self):
        super().close()
        for d in self.doors:
            d.close()


def altered(reply, **fields):
    r = wire.Reply()
    r.CopyFrom(reply)
    for k, v in fields.items():
        setattr(r, k, v)
    return r


ROW = 64 * 4  # bytes of a result row: hidden 64, f32

# What must be noticed: the link is closed, the rows are asked elsewhere.
NOTICED = {
    "a row too few": lambda r: [altered(r, rows=r.rows - 1, tensor=r.tensor[:-ROW])],
    "a row too many": lambda r: [altered(r, rows=r.rows + 1, tensor=r.tensor + bytes(ROW))],
    "more rows than there are": lambda r: [altered(r, rows=r.rows + 1)],
    "rows without end": lambda r: [altered(r, rows=2**32 - 1)],
    "a byte too few": lambda r: [altered(r, tensor=r.tensor[:-1])],
    "a byte too many": lambda r: [altered(r, tensor=r.tensor + b"x")],
    "no tensor": lambda r: [altered(r, tensor=b"")],
    "nothing at all": lambda r: [altered(r, rows=0, tensor=b"")],
    "the other format": lambda r: [altered(r, format=1, tensor=r.tensor[::2])],
    "a format of requests": lambda r: [altered(r, format=2)],
    "an unknown format": lambda r: [altered(r, format=77)],
    "an unknown kind": lambda r: [altered(r, kind=77)],
    "no kind": lambda r: [altered(r, kind=0)],
    "a hello of nothing": lambda r: [wire.Reply(kind=wire.HELLO)],
    "bytes that are no message": lambda r: [b"\xff\xff\xff"],
    "an empty message": lambda r: [b""],
    "noise": lambda r: [random.Random(SEED).randbytes(len(r.tensor))],
    "zeros": lambda r: [bytes(len(r.tensor))],
    "a step of tomorrow": lambda r: [altered(r, step=r.step + (1 << 40))],
    "a step beyond all": lambda r: [altered(r, step=2**64 - 1)],
    "step 0": lambda r: [altered(r, step=0)],
    "an error for a step of tomorrow": lambda r: [wire.Reply(kind=wire.ERROR, step=r.step + (1 << 40), error_code="INVALID", error_text="x")],
    "right, and then a step of tomorrow": lambda r: [r, altered(r, step=r.step + (1 << 40))],
}

# What does no harm: the link stays.
BORNE = {
    "the same answer twice": lambda r: [r, r],
    "an answer, then an error": lambda r: [r, wire.Reply(kind=wire.ERROR, step=r.step, error_code="INVALID", error_text="x")],
    "a pong that nobody waits for": lambda r: [wire.Reply(kind=wire.PONG, step=7, tensor=bytes(100)), r],
    "times that cannot be": lambda r: [altered(r, queue_us=2**32 - 1, compute_us=2**32 - 1)],
    "an error with a text of 100 KB": lambda r: [wire.Reply(kind=wire.ERROR, step=r.step, error_code="INVALID", error_text="\n\x1b" * 50000)],
    "an error without a code": lambda r: [wire.Reply(kind=wire.ERROR, step=r.step)],
    "an error of tomorrow": lambda r: [wire.Reply(kind=wire.ERROR, step=r.step, error_code="NO_SUCH", error_text="x")],
}


def numbers(value):
    return lambda r: [altered(r, tensor=struct.pack("<f", value) * (len(r.tensor) // 4))]


def test_answers_that_do_not_fit_are_refused_and_asked_elsewhere():
    with Spoiled() as c:
        want, bad = c.ask(), c.doors[1]
        assert [w[0] for w in want] == [200] * 3, want
        reasons = set()
        for what, spoil in NOTICED.items():
            c.restart_coordinator()
            before, bad.closed, bad.spoil = len(c.said("coordinator")), 0, spoil
            wait_for(f"{what}: the link is closed", lambda: (c.ask() == want or fail(what)) and bad.closed)
            bad.spoil = None
            lines = [l for l in c.said("coordinator")[before:].splitlines() if "dropped: " in l]
            assert lines and all("node=1 " in l and "level=error" in l for l in lines), (what, lines)
            reasons |= {l.partition("dropped: ")[2] for l in lines}
            wait_for("both ready", c.is_ready)
            assert c.ask() == want, what
    assert len(reasons) >= len(NOTICED) / 2, reasons


def fail(what):
    raise AssertionError(f"{what}: another answer")


def test_an_answer_for_another_nodes_step_is_refused():
    with Spoiled() as c:
        want = c.ask()
        good, bad = c.doors

        def slowly(r):  # so that its steps are open while the other one answers for them
            time.sleep(0.05)
            return [r]

        good.spoil, bad.spoil = slowly, lambda r: [altered(r, step=good.last_step)]
        wait_for("the link is closed", lambda: (c.ask() == want or fail("another's step")) and bad.closed)
        good.spoil = bad.spoil = None
        wait_for("both ready", c.is_ready)
        assert c.ask() == want


def test_what_does_no_harm_is_borne():
    with Spoiled() as c:
        want = c.ask()
        bad = c.doors[1]
        for what, spoil in BORNE.items():
            spoiled, bad.spoil = bad.spoiled, spoil
            wait_for("an answer was spoiled", lambda: (c.ask() == want or fail(what)) and bad.spoiled > spoiled)
            bad.spoil = None
            assert c.ask() == want and bad.closed == 0 and c.is_ready(), what


def test_numbers_that_are_wrong_harm_their_requests_only_and_only_as_long():
    """Nobody can tell a wrong number from a right one: a node is trusted with them. Not a number is an error that says so."""
    with Spoiled() as c:
        want = c.ask()
        bad = c.doors[1]
        for what, value in {"NaN": float("nan"), "infinity": float("inf"), "the largest": 3.4e38, "zero": 0.0, "noise": None}.items():
            spoiled = bad.spoiled
            bad.spoil = numbers(value) if value is not None else lambda r: [altered(r, tensor=random.Random(SEED).randbytes(len(r.tensor)))]
            answers = c.ask()
            wait_for("an answer was spoiled", lambda: bad.spoiled > spoiled or c.ask() is None)
            for status, a in answers:
                if status == 200:
                    text = json.dumps(a)
                    assert "NaN" not in text and "Infinity" not in text, (what, text)
                else:
                    assert status == 500 and "not finite" in a["message"] and a["type"] == "server_error", (what, a)
            if what == "NaN":
                assert any(status == 500 for status, _ in answers), answers
            bad.spoil = None
            for _ in range(3):  # nothing of it stays behind
                assert c.ask() == want, what
        assert c.is_ready()


def test_a_node_that_lies_about_itself_is_named_and_harms_nobody():
    """A second hello in a stream, holdings of experts and layers that there are not, a draining that never ends."""
    with Spoiled() as c:
        want = c.ask()
        bad = c.doors[1]
        hello = wire.describe(bad.channel).hello

        def lie(kind, **fields):
            reply = wire.Reply(kind=kind, **({} if kind != wire.HOLDINGS or "error_code" not in fields else {"error_code": fields.pop("error_code")}))
            reply.hello.CopyFrom(hello)
            for k, v in fields.items():
                if isinstance(v, list):
                    del getattr(reply.hello, k)[:]
                    getattr(reply.hello, k).extend(v)
                else:
                    setattr(reply.hello, k, v)
            return lambda r: [reply, r]

        lies = {
            "another model": lie(wire.HELLO, model_digest="0" * 32), "another protocol": lie(wire.HELLO, protocol=99),
            "another process": lie(wire.HELLO, incarnation=1), "no experts": lie(wire.HELLO, held=[]),
            "every expert of every layer": lie(wire.HELLO, held=[b"\xff" * 128] * 512), "more layers than there may be": lie(wire.HELLO, held=[b"\xff"] * 513),
            "more experts than there may be": lie(wire.HELLO, held=[b"\xff" * 129]), "a name with line ends": lie(wire.HELLO, id="x\r\nlevel=error\x1b[0m"),
            "a long name": lie(wire.HELLO, id="x" * 300), "numbers without end": lie(wire.HELLO, expert_bytes=2**64 - 1, threads=2**32 - 1),
            "holdings of nothing": lie(wire.HOLDINGS, held=[]), "holdings of everything": lie(wire.HOLDINGS, held=[b"\xff" * 128] * 512),
            "a load that failed": lie(wire.HOLDINGS, error_code="EXHAUSTED"), "its end": lambda r: [wire.Reply(kind=wire.DRAINING), r],
        }
        for what, spoil in lies.items():
            c.restart_coordinator()
            spoiled, bad.spoil = bad.spoiled, spoil
            wait_for("an answer was spoiled", lambda: (c.ask() == want or fail(what)) and bad.spoiled > spoiled)
            assert c.ask() == want, what
            status, page, _ = request(c.url, "GET", "/v1/cluster")
            assert status == 200 and len(page["nodes"]) == 2 and all(ch >= " " for ch in page["nodes"][1]["id"]), (what, page)
            bad.spoil = None
            bad.drop_streams()  # a liar is asked again when its link comes back
            wait_for(f"{what}: both ready again", c.is_ready)
        assert c.ask() == want
        assert not any(l.startswith("level=") for l in c.said("coordinator").splitlines()), "a node writes lines of the log"


if __name__ == "__main__":
    run_tests([v for k, v in list(globals().items()) if k.startswith("test_")])
