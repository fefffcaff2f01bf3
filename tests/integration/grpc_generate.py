#!/usr/bin/env python3
"""An independent gRPC client (PyPI grpcio + protobuf) against a coordinator's gRPC API.

    grpc_generate.py GRPC_ADDRESS HTTP_URL

Health, an answer that equals the one over HTTP, errors, and a cancelled stream whose cache blocks come back.
Needs protoc; no generated code. Exits 0 when all is well.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

address, url = sys.argv[1:3]
PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
with tempfile.NamedTemporaryFile() as out:
    subprocess.run(["protoc", "-I", PROTO, "--descriptor_set_out=" + out.name, "moesaic/v1/inference.proto", "moesaic/v1/health.proto"],
                   check=True)
    files = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(out.name).read_bytes())
pool = descriptor_pool.DescriptorPool()
for f in files.file:
    pool.Add(f)


def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def http(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data, {"Content-Type": "application/json"}), timeout=60) as r:
        return json.load(r)


def expect(ok, text):
    if not ok:
        raise AssertionError(text)


GenerateRequest, GenerateReply = message("moesaic.v1.GenerateRequest"), message("moesaic.v1.GenerateReply")
with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
    check = channel.unary_unary("/grpc.health.v1.Health/Check", message("grpc.health.v1.HealthCheckRequest").SerializeToString,
                                message("grpc.health.v1.HealthCheckResponse").FromString)
    status = check(message("grpc.health.v1.HealthCheckRequest")(), timeout=10, wait_for_ready=True).status
    expect(status == 1, f"health is SERVING, not {status}")

    generate = channel.unary_stream("/moesaic.v1.InferenceService/Generate", GenerateRequest.SerializeToString, GenerateReply.FromString)

    # The same request over both doors.
    asked = dict(prompt="The fox said to the king, and", max_tokens=24, temperature=0.8, top_p=0.9, seed=11)
    replies = list(generate(GenerateRequest(**asked), timeout=60))
    text = "".join(r.text for r in replies)
    want = http("/v1/completions", dict(asked, return_token_ids=True))
    expect(len(replies) > 5, f"it streams: {len(replies)} messages")
    expect(text == want["choices"][0]["text"], f"gRPC {text!r}, HTTP {want['choices'][0]['text']!r}")
    ids = [i for r in replies for i in r.token_ids]
    expect(ids == want["choices"][0]["token_ids"], f"{ids} {want['choices'][0]['token_ids']}")
    expect(replies[-1].finish_reason == want["choices"][0]["finish_reason"], replies[-1].finish_reason)
    expect(replies[-1].usage.completion_tokens == want["usage"]["completion_tokens"], replies[-1].usage)

    chat = dict(role="user", content="Tell me a story.")
    text = "".join(r.text for r in generate(GenerateRequest(messages=[chat], max_tokens=12, seed=3), timeout=60))
    want = http("/v1/chat/completions", dict(messages=[chat], max_tokens=12, seed=3))["choices"][0]["message"]["content"]
    expect(text == want, f"gRPC {text!r}, HTTP {want!r}")

    for bad in (GenerateRequest(), GenerateRequest(prompt="x", temperature=99)):
        try:
            list(generate(bad, timeout=60))
            raise AssertionError("a malformed request was answered")
        except grpc.RpcError as e:
            expect(e.code() == grpc.StatusCode.INVALID_ARGUMENT, f"{e.code()}: {e.details()}")

    stream = generate(GenerateRequest(prompt="Once", max_tokens=400, ignore_eos=True, seed=1), timeout=60)
    for _ in range(3):
        next(stream)
    stream.cancel()
    end = time.monotonic() + 10
    while (engine := http("/v1/cluster")["engine"])["running"] or engine["kv_blocks_used"]:
        expect(time.monotonic() < end, f"a cancelled stream still has its blocks: {engine}")
        time.sleep(0.02)
print("ok")
