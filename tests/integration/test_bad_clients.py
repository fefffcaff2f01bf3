"""Clients that are wrong at the level of bytes, on raw sockets against a real coordinator with a node: heads cut and
malformed, bodies framed falsely, requests in one another, slow clients and clients that vanish. All tests share one
cluster, on which another client's long stream is asked again and again and must not change. Standard library only.

MOESAIC_SLOW_CLIENTS=1 also waits for the limits of bodies (30 s) and of idle connections (60 s)."""
import json
import os
import resource
import select
import socket
import struct
import threading
import time
import urllib.parse

from bystander import Bystander
from cluster import DATA, Cluster, alive, request, run_tests, wait_for
from machines import Machines

CTX = 4096
ASK = json.dumps({"prompt": "The sea", "max_tokens": 2, "temperature": 0}).encode()
STREAM = json.dumps({"prompt": "The sea", "max_tokens": 3500, "ignore_eos": True, "stream": True}).encode()
HEAD_SECONDS, BODY_SECONDS, IDLE_SECONDS = 10, 30, 60


def post(body, *fields, path="/v1/completions"):
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path, *fields):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


class Shared:
    """The one cluster of this file."""
    cluster = bystander = None

    @classmethod
    def open(cls):
        if cls.cluster is not None:
            return
        cls.cluster = Cluster(DATA / "tiny-qwen3_moe", "--ctx", CTX, nodes=1)
        u = urllib.parse.urlparse(cls.cluster.url)
        cls.address, cls.pids = (u.hostname, u.port), cls.cluster.pids()
        cls.bystander = Bystander(cls.cluster.url)
        cls.want = answers_of(post(ASK, "Connection: close"))
        assert cls.want[0][0] == 200, cls.want

    @classmethod
    def check(cls):
        assert all(alive(p) for p in cls.pids), f"a process died\n{cls.cluster.output()[-2000:]}"
        assert same(answers_of(post(ASK, "Connection: close")), cls.want), "another answer than before"
        if cls.bystander.failure is not None:
            raise cls.bystander.failure

    @classmethod
    def close(cls):
        if cls.cluster is not None:
            try:
                cls.bystander.end()
            finally:
                cls.cluster.close()


def metric(name):
    text = request(Shared.cluster.url, "GET", "/metrics")[1]
    return float(next(l.split()[1] for l in text.splitlines() if l.startswith(name + " ")))


def connect(timeout=20, address=None):
    s = socket.create_connection(address or Shared.address, timeout)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def read_all(s):
    """Everything until the server closes; what it sent before a reset counts."""
    got = b""
    try:
        while True:
            more = s.recv(65536)
            if not more:
                return got
            got += more
    except ConnectionResetError:
        return got


def split_answers(raw):
    """(status, headers, body) of each reply, by Content-Length; a streamed one takes the rest."""
    answers = []
    while raw:
        assert raw.startswith(b"HTTP/1.1 "), raw[:200]
        head, _, raw = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {l.split(":")[0].lower(): l.split(":", 1)[1].strip() for l in lines[1:]}
        status = int(lines[0].split()[1])
        if status == 100:
            answers.append((100, fields, b""))
        elif "content-length" in fields:
            n = int(fields["content-length"])
            answers.append((status, fields, raw[:n]))
            raw = raw[n:]
        else:
            answers.append((status, fields, raw))
            raw = b""
    return answers


def answers_of(raw, then_close=False):
    """Send bytes and read until the server closes. then_close: close our side behind them."""
    with connect() as s:
        try:
            s.sendall(raw)
            if then_close:
                s.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before the end: the reply is still to be read
        return split_answers(read_all(s))


def same(a, b):
    """The same statuses and texts; times and names of requests differ."""
    def core(answers):
        out = []
        for status, _, body in answers:
            try:
                out.append((status, json.loads(body)["choices"]))
            except (ValueError, KeyError, TypeError):
                out.append((status, body))
        return out
    return core(a) == core(b)


def expect_refused(what, raw, status, then_close=False):
    """One reply, an error in OpenAI's form, and the connection closed: nothing behind it is read as a request."""
    answers = answers_of(raw, then_close)
    assert [a[0] for a in answers] == [status], f"{what}: {[(a[0], a[2][:100]) for a in answers]}, not {status}"
    error = json.loads(answers[0][2])["error"]
    assert error["message"] and error["type"], (what, error)
    assert answers[0][1].get("connection") == "close", (what, answers[0][1])


# ---- heads ------------------------------------------------------------------------------------------

def test_a_request_cut_at_any_byte_is_no_request():
    Shared.open()
    raw = post(ASK, "Connection: close")
    for cut in range(len(raw)):
        if cut % 2:
            answers = answers_of(raw[:cut], then_close=True)
            assert answers == [], f"cut at {cut}: {answers}"
        else:
            with connect() as s:
                s.sendall(raw[:cut])
                if cut % 4:  # a reset instead of an end
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    Shared.check()


def test_a_request_in_two_pieces_cut_at_any_byte_is_one():
    Shared.open()
    raw = post(ASK, "Connection: close")
    for cut in range(1, len(raw)):
        with connect() as s:
            s.sendall(raw[:cut])
            time.sleep(0.001)
            s.sendall(raw[cut:])
            assert same(split_answers(read_all(s)), Shared.want), f"cut at {cut}"
    Shared.check()


def test_malformed_heads_are_refused_and_end_the_connection():
    Shared.open()
    cases = {
        "a bare LF": (b"GET /livez HTTP/1.1\nHost: localhost\n\n", 400),
        "one bare LF": (b"GET /livez HTTP/1.1\r\nHost: localhost\n\r\n", 400),
        "a bare CR": (b"GET /livez HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n", 400),
        "obs-fold": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400),
        "a folded first line": (b"GET /livez HTTP/1.1\r\n Host: localhost\r\n\r\n", 400),
        "a folded length": (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: a\r\n\tContent-Length: 5\r\n\r\n", 400),
        "a NUL in a name": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX\0Y: a\r\n\r\n", 400),
        "a NUL in a value": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", 400),
        "a NUL in the path": (b"GET /livez\0 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        "an escaped NUL": (get("/livez%00"), 400),
        "a blank before the colon": (b"GET /livez HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        "no colon": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n", 400),
        "no name": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n", 400),
        "no Host": (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        "two Hosts": (get("/livez", "Host: localhost"), 400),
        "another Host": (b"GET /livez HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        "HTTP/0.9": (b"GET /livez\r\n\r\n", 400),
        "HTTP/2.0": (b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        "HTTP/1.9": (b"GET /livez HTTP/1.9\r\nHost: localhost\r\n\r\n", 505),
        "HTTP/1.10": (b"GET /livez HTTP/1.10\r\nHost: localhost\r\n\r\n", 400),
        "http/1.1": (b"GET /livez http/1.1\r\nHost: localhost\r\n\r\n", 400),
        "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        "two blanks": (b"GET  /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        "a tab": (b"GET\t/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        "a blank at the start": (b" GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        "a full URL": (b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        "an asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        "CONNECT": (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        "an unknown method": (b"FROB /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        "a small method": (b"get /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        "a hello of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)), 400),
        "bytes beyond ASCII": (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        "empty lines without end": (b"\r\n" * 100, 400),
        "an unknown expectation": (post(ASK, "Expect: tea"), 417),
        "a long URL": (get("/" + "a" * 8192), 414),
        "an endless URL": (b"GET /" + b"a" * 100000, 414),
        "a long line": (get("/livez", "X: " + "a" * 33000), 431),
        "an endless line": (b"GET /livez HTTP/1.1\r\nX: " + b"a" * 100000, 431),
        "an endless name": (b"GET /livez HTTP/1.1\r\n" + b"a" * 100000, 431),
        "a long head": (get("/livez", *(f"X{i}: {'a' * 1000}" for i in range(33))), 431),
        "65 fields": (get("/livez", *(f"X{i}: a" for i in range(64))), 431),
    }
    for what, (raw, status) in cases.items():
        expect_refused(what, raw, status)
        if what not in ("an endless URL", "an endless line", "an endless name", "empty lines without end"):
            expect_refused(what + ", and another request", raw + get("/metrics"), status)  # not answered
    ok = get("/livez", "Connection: close", *(f"X{i}: a" for i in range(62)))
    assert [a[0] for a in answers_of(ok)] == [200], "64 fields"
    assert [a[0] for a in answers_of(get("/" + "a" * 8191, "Connection: close"))] == [404], "a URL of 8192 bytes"
    long = get("/livez", "Connection: close")
    long = get("/livez", "Connection: close", "X: " + "a" * (32768 - len(long) - 5))
    assert len(long) == 32768 and [a[0] for a in answers_of(long)] == [200], "a head of 32 KiB"
    wrong = {b"DELETE /v1/completions": 405, b"PUT /v1/chat/completions": 405, b"GET /v1/completions": 405, b"POST /livez": 405, b"GET /nothing": 404,
             b"GET //livez": 404, b"GET /../livez": 404, b"GET /livez/": 404}
    for line, status in wrong.items():
        raw = line + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert [a[0] for a in answers_of(raw)] == [status], (line, answers_of(raw))
    Shared.check()


# ---- bodies and smuggling ---------------------------------------------------------------------------

def test_a_body_of_two_lengths_is_refused_and_nothing_in_it_is_read():
    Shared.open()
    inner = get("/metrics")
    start = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    fields = {
        "both": "Content-Length: 4\r\nTransfer-Encoding: chunked", "both, the other way": "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "two lengths": "Content-Length: 4\r\nContent-Length: 5", "the same twice": "Content-Length: 4\r\nContent-Length: 4",
        "a list": "Content-Length: 4, 4", "a plus": "Content-Length: +4", "a minus": "Content-Length: -4", "hexadecimal": "Content-Length: 0x4",
        "a blank in it": "Content-Length: 4 4", "nothing": "Content-Length:", "a word": "Content-Length: four", "a fraction": "Content-Length: 4.0",
        "2^64 - 1": "Content-Length: 18446744073709551615", "2^64 + 4": "Content-Length: 18446744073709551620", "two codings": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "gzip": "Transfer-Encoding: gzip, chunked", "chunked first": "Transfer-Encoding: chunked, identity", "identity": "Transfer-Encoding: identity",
        "xchunked": "Transfer-Encoding: xchunked", "a blank before the colon": "Transfer-Encoding : chunked",
        "a tab before the colon": "Content-Length\t: 4", "quoted": 'Transfer-Encoding: "chunked"', "chunked twice": "Transfer-Encoding: chunked, chunked",
        "a vertical tab": "Transfer-Encoding: \x0bchunked",
    }
    for what, field in fields.items():
        expect_refused(what, start + field.encode("latin-1") + b"\r\n\r\n0\r\n\r\n" + inner, 400)
    old = b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    expect_refused("chunked in HTTP/1.0", old + inner, 400)
    # A length that is right, and a body that looks like a request: it is the body.
    answers = answers_of(post(inner, "Connection: close"))
    assert [a[0] for a in answers] == [400] and b"JSON" in answers[0][2], answers
    # Without a length there is no body; what follows is the next request.
    answers = answers_of(start + b"\r\n" + get("/livez", "Connection: close"))
    assert [a[0] for a in answers] == [411, 200], answers
    for n in (8 << 20) + 1, 2**32, 2**63 - 1:
        expect_refused(f"{n} bytes", start + f"Content-Length: {n}\r\n\r\n".encode() + inner, 413)
    Shared.check()


def test_malformed_chunks_are_refused_and_nothing_behind_them_is_read():
    Shared.open()
    start = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    n = b"%x" % len(ASK)
    good = {
        "one": n + b"\r\n" + ASK + b"\r\n0\r\n\r\n", "zeros before": b"0000" + n + b"\r\n" + ASK + b"\r\n000\r\n\r\n", "large letters": n.upper() + b"\r\n" + ASK + b"\r\n0\r\n\r\n",
        "an extension": n + b";a=b\r\n" + ASK + b"\r\n0;c\r\n\r\n", "a trailer": n + b"\r\n" + ASK + b"\r\n0\r\nX: y\r\n\r\n",
        "a byte each": b"".join(b"1\r\n%c\r\n" % c for c in ASK) + b"0\r\n\r\n",
    }
    last = get("/livez", "Connection: close")
    for what, body in good.items():
        answers = answers_of(start + body + last)
        assert [a[0] for a in answers] == [200, 200] and same(answers[:1], Shared.want), (what, answers)
    bad = {
        "no size": b"\r\n" + ASK, "a letter": b"g\r\n", "a blank before": b" " + n + b"\r\n" + ASK, "a blank behind": n + b" \r\n" + ASK,
        "a minus": b"-1\r\n", "a plus": b"+" + n + b"\r\n" + ASK, "0x": b"0x" + n + b"\r\n" + ASK, "nine digits": b"000000001\r\n",
        "a bare LF": n + b"\n" + ASK, "a bare CR": n + b"\r" + ASK, "too long for its size": b"1\r\n" + ASK, "no CRLF behind": n + b"\r\n" + ASK + b"0\r\n\r\n",
        "LF behind": n + b"\r\n" + ASK + b"\n0\r\n\r\n", "any two bytes behind": n + b"\r\n" + ASK + b"ab0\r\n\r\n", "a control in an extension": n + b";a\x01\r\n" + ASK,
        "LF in an extension": n + b";a\nb\r\n" + ASK, "an endless extension": b"1;" + b"a" * 5000, "LF in a trailer": n + b"\r\n" + ASK + b"\r\n0\r\nX: y\n\r\n",
        "a folded trailer": n + b"\r\n" + ASK + b"\r\n0\r\n x\r\n\r\n", "endless trailers": n + b"\r\n" + ASK + b"\r\n0\r\n" + b"X: y\r\n" * 2000,
        "a last chunk cut": n + b"\r\n" + ASK + b"\r\n0\r\nGET /metrics HTTP/1.1\r\n\rX",
    }
    for what, body in bad.items():
        expect_refused(what, start + body + get("/metrics"), 400)
    for size in b"800001", b"7fffffff", b"ffffffff":
        expect_refused(f"a chunk of {size}", start + size + b"\r\n" + get("/metrics"), 413)
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    expect_refused("chunks that sum up", start + piece * 129, 413)
    Shared.check()


def test_pipelined_requests_are_answered_in_order():
    Shared.open()
    kinds = {"G": lambda i: get("/livez", f"X-Request-Id: r{i}"), "P": lambda i: post(ASK, f"X-Request-Id: r{i}"),
             "S": lambda i: post(STREAM.replace(b"3500", b"3"), f"X-Request-Id: r{i}"),
             "C": lambda i: b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
                            b"X-Request-Id: r%d\r\n\r\n10\r\n{\"prompt\": \"abc\"\r\n1\r\n}\r\n0\r\n\r\n" % i,
             "E": lambda i: post(b"{}", f"X-Request-Id: r{i}")}
    for mix in ("GG", "GP", "PG", "PP", "PGP", "GPG", "GGP", "PPP", "CGC", "SGP", "PSS", "EGP", "GGGGGGGGPPPPPPPPCCCCCCCCEEEEEEEE"):
        raw = b"".join(kinds[k](i) for i, k in enumerate(mix)) + get("/livez", "X-Request-Id: last", "Connection: close")
        with connect() as s:
            s.sendall(raw)
            got = read_all(s)
        ids = [l.split(b": ")[1].decode() for l in got.split(b"\r\n") if l.startswith(b"X-Request-Id")]
        assert ids == [*(f"r{i}" for i in range(len(mix))), "last"], (mix, ids)
        if "S" not in mix:
            statuses = [a[0] for a in split_answers(got)]
            assert statuses == [*({"E": 400}.get(k, 200) for k in mix), 200], (mix, statuses)
    # A malformed one ends the connection; what was before it is answered, what is behind it is not.
    answers = answers_of(get("/livez") + post(ASK) + b"GET /\x01 HTTP/1.1\r\n\r\n" + get("/metrics"))
    assert [a[0] for a in answers] == [200, 200, 400], answers
    # More requests than are kept while one is being answered: dropped, not stored.
    with connect() as s:
        s.sendall(post(STREAM))
        s.recv(100)
        try:
            for _ in range(100):
                s.sendall(get("/livez") * 100)
                time.sleep(0.001)
        except (BrokenPipeError, ConnectionResetError):
            pass
        read_all(s)
    Shared.check()


def test_expect_100_is_answered_before_the_body():
    Shared.open()
    with connect() as s:
        head, _, body = post(ASK, "Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")
        s.sendall(head + b"\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 100 ")
        s.sendall(body)
        assert same(split_answers(read_all(s)), Shared.want)
    large = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
    expect_refused("too large to go on", large, 413)
    Shared.check()


# ---- clients that are slow, or gone ------------------------------------------------------------------

class Dripper(threading.Thread):
    """Sends a byte every so often until the server ends it; how long that took, and what it said."""

    def __init__(self, first, drip, every):
        super().__init__()
        self.first, self.drip, self.every, self.got = first, drip, every, None

    def run(self):
        with connect(timeout=120) as s:
            began = time.monotonic()
            s.sendall(self.first)
            s.settimeout(self.every)
            while self.got is None and time.monotonic() - began < 100:
                try:
                    self.got = s.recv(65536)
                except TimeoutError:
                    if self.drip:
                        s.sendall(self.drip)
                except ConnectionResetError:
                    self.got = b""
            self.seconds = time.monotonic() - began


class Silent(threading.Thread):
    """A connection that says nothing; how long until the other side ends it."""

    def __init__(self, address):
        super().__init__()
        host, port = address.rsplit(":", 1)
        self.socket, self.seconds, self.began = connect(60, (host, int(port))), None, time.monotonic()
        self.start()

    def run(self):
        with self.socket as s:
            try:
                read_all(s)
                self.seconds = time.monotonic() - self.began
            except TimeoutError:
                pass


def test_slow_clients_lose_their_place_and_nobody_elses():
    Shared.open()
    start = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    drippers = {"a head by bytes": (Dripper(b"GET /livez HTTP/1.1\r\n", b"X", 0.2), HEAD_SECONDS, b"HTTP/1.1 408"),
                "half a head": (Dripper(b"GET /livez HTTP/1.1\r\nHost: loc", b"", 0.2), HEAD_SECONDS, b"HTTP/1.1 408"),
                "fields without end": (Dripper(get("/livez")[:-2], b"A: b\r\n", 0.5), HEAD_SECONDS, b"HTTP/1.1 408")}
    if os.environ.get("MOESAIC_SLOW_CLIENTS"):
        drippers |= {"a body by bytes": (Dripper(start, b"x", 0.2), BODY_SECONDS, b"HTTP/1.1 408"),
                     "half a body": (Dripper(start + b"{", b"", 0.2), BODY_SECONDS, b"HTTP/1.1 408"),
                     "nothing": (Dripper(b"", b"", 0.2), IDLE_SECONDS, b"")}
    silent = [Silent(a) for a in (Shared.cluster.facts["grpc"], Shared.cluster.facts["nodes"][0]["address"])]
    idle = connect()
    for d, _, _ in drippers.values():
        d.start()
    for what, (d, seconds, reply) in drippers.items():
        d.join()
        assert d.got is not None and d.got.startswith(reply) and (reply or d.got == b""), (what, d.got)
        assert d.seconds >= seconds - 0.5, f"{what}: after {d.seconds:.1f} s, not {seconds}"
    for s in silent:  # strangers on the ports that speak gRPC
        s.join()
        assert s.seconds is not None and s.seconds >= HEAD_SECONDS / 2, s.seconds
    if not os.environ.get("MOESAIC_SLOW_CLIENTS"):  # a connection that says nothing may do so for longer
        idle.sendall(get("/livez", "Connection: close"))
        assert [a[0] for a in split_answers(read_all(idle))] == [200]
    idle.close()
    Shared.check()


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def readable(s):
    return bool(select.select([s], [], [], 0)[0])


def test_clients_that_vanish_stop_their_requests():
    Shared.open()
    cancelled = 'moesaic_request_total{finish_reason="cancelled",status="499"}'
    whole = STREAM.replace(b'"stream": true', b'"stream": false')
    before, n = metric(cancelled), 0
    for leave in socket.socket.close, reset, lambda s: (s.shutdown(socket.SHUT_WR), s.close()):
        for body in STREAM, whole:
            for wait in False, True:
                s = connect()
                s.sendall(post(body))
                if wait:
                    wait_for("it runs", lambda: metric("moesaic_requests_running") >= 2 or readable(s))
                leave(s)
                n += wait
    # All of them end; the bystander's alone goes on. (One that had not begun need not be counted.)
    wait_for("all end", lambda: metric("moesaic_requests_running") + metric("moesaic_requests_waiting") <= 1)
    assert metric(cancelled) - before >= n, (metric(cancelled) - before, n)
    Shared.check()


def usage(pid):
    with open(f"/proc/{pid}/status") as f:
        rss = next(int(l.split()[1]) for l in f if l.startswith("VmRSS"))
    return len(os.listdir(f"/proc/{pid}/fd")), rss


def drop_connections(n):
    """Open so many connections, each gone in another way at another moment."""
    head = post(ASK)
    for i in range(n):
        s = connect()
        kind = i % 8
        if kind:
            s.sendall([b"G", head[:40], head[:-5], get("/livez"), post(STREAM.replace(b"3500", b"100")), post(ASK), b"\x16\x03\x01"][kind - 1])
        if kind >= 4 and i % 3 == 0:
            s.recv(10)
        reset(s) if i % 2 else s.close()


def test_a_thousand_dropped_connections_leave_nothing_behind():
    Shared.open()
    pid = Shared.cluster.facts["coordinator"]["pid"]
    drop_connections(1000)
    wait_for("connections end", lambda: metric("moesaic_http_connections") <= 2)
    fds, rss = usage(pid)
    drop_connections(1000)
    wait_for("connections end", lambda: metric("moesaic_http_connections") <= 2)
    wait_for("descriptors", lambda: usage(pid)[0] <= fds + 2)
    grown = usage(pid)[1] - rss
    assert grown < 8192, f"{grown} KiB more after 1000 connections"
    # Idle ones, all at once: they cost little, and the one client more is served.
    many = [connect() for _ in range(400)]
    assert same(answers_of(post(ASK, "Connection: close")), Shared.want)
    for s in many:
        s.close()
    wait_for("connections end", lambda: metric("moesaic_http_connections") <= 2)
    wait_for("descriptors", lambda: usage(pid)[0] <= fds + 2)
    Shared.check()


def soft_limit(pid):
    with open(f"/proc/{pid}/limits") as f:
        return int(next(l.split()[3] for l in f if l.startswith("Max open files")))


def test_connections_leave_descriptors_to_the_nodes():
    """Where few files may be open, clients get a part of them and a node that comes back still finds one."""
    limited = lambda i: ["prlimit", "--nofile=512:512"] if i is None else ["prlimit", "--nofile=64:"]  # noqa: E731
    with Machines(DATA / "tiny-qwen3_moe", 1, prefix=limited) as c:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert soft_limit(c.coordinator.pid) == 512 and "HTTP gets 128 connections" in c.said("coordinator")
        assert soft_limit(c.nodes[0].pid) == (262144 if hard == resource.RLIM_INFINITY else min(hard, 262144)), "raised to the hard limit"
        u = urllib.parse.urlparse(c.url)
        want = c.complete(prompt="The sea")["choices"]
        held = [connect(address=(u.hostname, u.port)) for _ in range(400)]
        wait_for("the rest is refused", lambda: sum(map(readable, held)) >= 400 - 128)
        refused = [s.recv(12) for s in held if readable(s)]
        assert set(refused) <= {b"HTTP/1.1 503", b""} and refused.count(b"HTTP/1.1 503") >= 32, refused
        c.nodes[0].kill()
        c.start_node(0)
        served = next(s for s in held if not readable(s))
        served.sendall(post(b'{"prompt": "The sea", "temperature": 0, "max_tokens": 16}', "Connection: close"))
        answer = split_answers(read_all(served))[0]
        assert answer[0] == 200 and json.loads(answer[2])["choices"] == want, answer
        for s in held:
            s.close()


def test_the_bystander_was_not_disturbed_and_the_cluster_ends_in_order():
    Shared.open()
    Shared.check()
    Shared.bystander.end()
    Shared.cluster.close()
    assert Shared.cluster.process.returncode == 0, Shared.cluster.process.returncode
    print(f"  {Shared.bystander.streams} equal streams meanwhile")


if __name__ == "__main__":
    try:
        run_tests([v for k, v in list(globals().items()) if k.startswith("test_")])
    finally:
        Shared.close()
