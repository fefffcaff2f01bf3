#!/usr/bin/env python3
"""An independent gRPC client (PyPI grpcio + protobuf) against a running expert node.

    grpc_interop.py HOST:PORT [--proto DIR]

Checks health, Describe, an unknown method, and a stream: hello, then a ping whose 1 MiB tensor must come back unchanged.
Needs protoc; no generated code. Prints one line per check; exit code 1 at the first that fails.
"""
import argparse, os, subprocess, sys, tempfile
import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

parser = argparse.ArgumentParser()
parser.add_argument("address")
parser.add_argument("--proto", default=os.path.join(os.path.dirname(__file__), "..", "..", "proto"))
args = parser.parse_args()

with tempfile.NamedTemporaryFile() as out:
    subprocess.run(["protoc", "-I", args.proto, "--descriptor_set_out=" + out.name, "moesaic/v1/expert.proto",
                    "moesaic/v1/health.proto"], check=True)
    files = descriptor_pb2.FileDescriptorSet.FromString(open(out.name, "rb").read())
pool = descriptor_pool.DescriptorPool()
for f in files.file:
    pool.Add(f)


def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def check(what, ok, seen=""):
    print(("ok    " if ok else "FAIL  ") + what, seen)
    if not ok:
        sys.exit(1)


Request, Reply = message("moesaic.v1.ExpertRequest"), message("moesaic.v1.ExpertReply")
size = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]
with grpc.insecure_channel(args.address, options=size) as channel:
    def unary(path, request, reply):
        call = channel.unary_unary(path, type(request).SerializeToString, reply.FromString)
        return call(request, timeout=10, wait_for_ready=True)

    health = unary("/grpc.health.v1.Health/Check", message("grpc.health.v1.HealthCheckRequest")(),
                   message("grpc.health.v1.HealthCheckResponse"))
    check("health is SERVING", health.status == 1, health.status)

    try:
        unary("/moesaic.v1.ExpertService/NoSuchThing", Request(), Reply)
        check("unknown method is refused", False)
    except grpc.RpcError as e:
        check("unknown method is refused", e.code() == grpc.StatusCode.UNIMPLEMENTED, e.details())

    about = unary("/moesaic.v1.ExpertService/Describe", message("moesaic.v1.DescribeRequest")(),
                  message("moesaic.v1.DescribeReply"))
    check("Describe has a hello", about.hello.protocol > 0 and about.hello.model_digest != "",
          f"id={about.hello.id} layers={len(about.hello.held)} bytes={about.hello.expert_bytes}")

    hello = Request(kind=1)
    hello.hello.CopyFrom(about.hello)  # what must agree does; the rest is ours
    hello.hello.id, hello.hello.lane = "grpc_interop.py", 1
    del hello.hello.held[:]
    payload = os.urandom(1 << 20)
    stream = channel.stream_stream("/moesaic.v1.ExpertService/Stream", Request.SerializeToString, Reply.FromString)
    replies = stream(iter([hello, Request(kind=4, step=7, tensor=payload)]), timeout=20)
    first = next(replies)
    check("the stream begins with a hello", first.kind == 1 and first.hello.model_digest == about.hello.model_digest)
    pong = next(replies)
    check("a ping comes back with its 1 MiB", pong.kind == 6 and pong.step == 7 and pong.tensor == payload,
          f"kind={pong.kind} bytes={len(pong.tensor)}")
