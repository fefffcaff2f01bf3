"""The wire between coordinator and expert node, spoken by gRPC's own Python (grpcio, protobuf): the messages, and a node that
forwards everything to a real one and spoils its answers on the way."""
import concurrent.futures
import pathlib
import subprocess
import tempfile
import threading

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

STREAM = "/moesaic.v1.ExpertService/Stream"
DESCRIBE = "/moesaic.v1.ExpertService/Describe"
HELLO, STEP, ASSIGN, PING = 1, 2, 3, 4
RESULT, ERROR, HOLDINGS, DRAINING, PONG = 2, 3, 4, 5, 6
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0),
           ("grpc.use_local_subchannel_pool", 1)]


def load_messages():
    proto = pathlib.Path(__file__).resolve().parents[2] / "proto"
    with tempfile.NamedTemporaryFile() as out:
        subprocess.run(["protoc", "-I", proto, "--descriptor_set_out=" + out.name, "moesaic/v1/expert.proto"], check=True)
        files = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(out.name).read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for f in files.file:
        pool.Add(f)
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName("moesaic.v1." + n))
            for n in ("ExpertRequest", "ExpertReply", "DescribeRequest", "DescribeReply")]


Request, Reply, DescribeRequest, DescribeReply = load_messages()


def channel(address):
    return grpc.insecure_channel(address, options=OPTIONS)


def describe(c, timeout=20):
    call = c.unary_unary(DESCRIBE, DescribeRequest.SerializeToString, DescribeReply.FromString)
    return call(DescribeRequest(), timeout=timeout, wait_for_ready=True)


def hello_for(c, lane=1):
    """A hello that the node behind the channel agrees with."""
    hello = Request(kind=HELLO)
    hello.hello.CopyFrom(describe(c).hello)
    hello.hello.id, hello.hello.lane = "stranger", lane
    del hello.hello.held[:]
    return hello


class SpoilingNode:
    """Listens as a node, forwards to the one at `target`, and puts `spoil(reply)`, a list of messages or bytes, in the place of each
    result while it is not None."""

    def __init__(self, target):
        self.channel, self.spoil, self.last_step = channel(target), None, 0
        self.spoiled, self.closed = 0, 0  # answers; streams with such answers that the other side ended
        self.contexts, self.lock = set(), threading.Lock()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(64), options=OPTIONS)
        self.server.add_generic_rpc_handlers([self])
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(self.stream) if details.method == STREAM else None

    def requests(self, given):
        for raw in given:
            q = Request.FromString(raw)
            if q.kind == STEP:
                self.last_step = q.step
            yield raw

    def stream(self, given, context):
        replies = self.channel.stream_stream(STREAM)(self.requests(given))
        with self.lock:
            self.contexts.add(context)
        spoiled = threading.Event()

        def ended():
            replies.cancel()
            with self.lock:
                self.contexts.discard(context)
                self.closed += spoiled.is_set()

        context.add_callback(ended)
        try:
            for raw in replies:
                reply, spoil = Reply.FromString(raw), self.spoil
                if reply.kind != RESULT or spoil is None:
                    yield raw
                    continue
                self.spoiled += 1
                spoiled.set()
                for r in spoil(reply):
                    yield r if isinstance(r, bytes) else r.SerializeToString()
        except grpc.RpcError as e:
            if context.is_active():
                context.abort(e.code(), e.details())

    def drop_streams(self):
        with self.lock:
            contexts = list(self.contexts)
        for c in contexts:
            c.cancel()

    def close(self):
        self.server.stop(0)
        self.channel.close()
