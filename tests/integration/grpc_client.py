#!/usr/bin/env python3
"""An independent gRPC client (PyPI grpcio + protobuf) against a running coordinator, compared with its HTTP API.

    grpc_client.py --grpc HOST:PORT --http http://HOST:PORT [--proto DIR]

Checks health (Check, Watch), text, token ids, seeds, logprobs, stop strings, messages, cancel, deadline, errors.
Needs protoc; no generated code. Prints one line per check; exit code 1 at the first that fails.
"""
import argparse, concurrent.futures, json, math, os, subprocess, tempfile, time
import urllib.error, urllib.request
import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

parser = argparse.ArgumentParser()
parser.add_argument("--grpc", required=True)
parser.add_argument("--http", required=True)
parser.add_argument("--proto", default=os.path.join(os.path.dirname(__file__), "..", "..", "proto"))
args = parser.parse_args()

with tempfile.NamedTemporaryFile() as out:
    subprocess.run(["protoc", "-I", args.proto, "--descriptor_set_out=" + out.name, "moesaic/v1/inference.proto",
                    "moesaic/v1/health.proto"], check=True)
    with open(out.name, "rb") as file:
        files = descriptor_pb2.FileDescriptorSet.FromString(file.read())
pool = descriptor_pool.DescriptorPool()
for f in files.file:
    pool.Add(f)


def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def check(what, ok, seen=""):
    print(("ok    " if ok else "FAIL  ") + what, seen, flush=True)
    if not ok:
        os._exit(1)  # calls may be open


def post(path, body):
    request = urllib.request.Request(args.http.rstrip("/") + path, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def get(path):
    with urllib.request.urlopen(args.http.rstrip("/") + path, timeout=20) as reply:
        return reply.read().decode()


def metric(name):
    return sum(float(line.rsplit(" ", 1)[1]) for line in get("/metrics").splitlines() if line.startswith(name))


Request, Reply = message("moesaic.v1.GenerateRequest"), message("moesaic.v1.GenerateReply")
HealthRequest, HealthReply = message("grpc.health.v1.HealthCheckRequest"), message("grpc.health.v1.HealthCheckResponse")
channel = grpc.insecure_channel(args.grpc, options=[("grpc.enable_http_proxy", 0)])
generate = channel.unary_stream("/moesaic.v1.InferenceService/Generate", Request.SerializeToString, Reply.FromString)
health = channel.unary_unary("/grpc.health.v1.Health/Check", HealthRequest.SerializeToString, HealthReply.FromString)
watch = channel.unary_stream("/grpc.health.v1.Health/Watch", HealthRequest.SerializeToString, HealthReply.FromString)


class Answer:
    def __init__(self, replies):
        self.replies = replies
        self.text = "".join(r.text for r in replies)
        self.ids = [i for r in replies for i in r.token_ids]
        self.logprobs = [(p.id, p.logprob) for r in replies for p in r.logprobs]
        self.top = [[(p.id, p.logprob) for p in r.top_logprobs] for r in replies if r.token_ids]
        self.prompt_ids = list(replies[0].prompt_token_ids)
        self.reason = replies[-1].finish_reason
        self.usage = replies[-1].usage


def ask(**fields):
    return Answer(list(generate(Request(**fields), timeout=120, wait_for_ready=True)))


def refused(what, code, part, **fields):
    try:
        ask(**fields)
        check(what, False, "was accepted")
    except grpc.RpcError as e:
        check(what, e.code() == code and part in e.details(), f"{e.code().name}: {e.details()}")


Code = grpc.StatusCode
check("health is SERVING", health(HealthRequest(), timeout=10, wait_for_ready=True).status == 1)
watching = watch(HealthRequest(), timeout=30)
check("Watch begins with SERVING", next(iter(watching)).status == 1)
watching.cancel()

model = json.loads(get("/v1/models"))["data"][0]["id"]
PROMPT = "Once upon a time there was a"

# Text, ids and counts are those of the HTTP API.
for what, sampling in (("greedy", dict(temperature=0.0)),
                       ("a seed", dict(temperature=1.0, seed=42)),
                       ("a negative seed with top_p, top_k, min_p",
                        dict(temperature=0.8, top_p=0.9, top_k=20, min_p=0.02, seed=-7))):
    mine = ask(prompt=PROMPT, max_tokens=24, ignore_eos=True, **sampling)
    status, http = post("/v1/completions", dict(prompt=PROMPT, max_tokens=24, ignore_eos=True, return_token_ids=True,
                                                **sampling))
    choice = http["choices"][0]
    check(f"{what}: the text is that of HTTP", status == 200 and mine.text == choice["text"], repr(mine.text)[:60])
    check(f"{what}: so are ids, reason and counts",
          mine.ids == choice["token_ids"] and len(mine.ids) == 24 and mine.reason == choice["finish_reason"] == "length"
          and (mine.usage.prompt_tokens, mine.usage.completion_tokens)
          == (http["usage"]["prompt_tokens"], http["usage"]["completion_tokens"]))
tokens = post("/tokenize", dict(prompt=PROMPT))[1]["tokens"]
check("the first message has the prompt's ids", mine.prompt_ids == tokens and not any(r.prompt_token_ids for r in mine.replies[1:]))
check("only the last message has reason and usage",
      not any(r.finish_reason or r.HasField("usage") for r in mine.replies[:-1]))
check("16 tokens by default", len(ask(prompt=PROMPT, ignore_eos=True, seed=1).ids) == 16)
greedy = ask(prompt=PROMPT, max_tokens=24, temperature=0.0, ignore_eos=True)
check("prompt_ids are as good as the prompt",
      ask(prompt_ids=tokens, max_tokens=24, temperature=0.0, ignore_eos=True).ids == greedy.ids)

# Logprobs.
mine = ask(prompt=PROMPT, max_tokens=8, temperature=0.0, ignore_eos=True, top_logprobs=3)
http = post("/v1/completions", dict(prompt=PROMPT, max_tokens=8, temperature=0, ignore_eos=True, logprobs=3))[1]
theirs = http["choices"][0]["logprobs"]["token_logprobs"]
check("a logprob for each token", [i for i, _ in mine.logprobs] == mine.ids and len(mine.ids) == 8)
check("they are those of HTTP, bit for bit",
      [p for _, p in mine.logprobs] == [message("moesaic.v1.TokenLogprob")(logprob=v).logprob for v in theirs])
check("3 alternatives each, best first, the greedy one at the top",
      all(len(t) == 3 and t[0] == l and t[0][1] >= t[1][1] >= t[2][1] for t, l in zip(mine.top, mine.logprobs)))
check("no logprobs unless asked", not greedy.logprobs and not any(greedy.top))
check("top_logprobs = 0 gives the chosen ones only",
      (lambda a: len(a.logprobs) == 2 and not any(a.top))(ask(prompt=PROMPT, max_tokens=2, top_logprobs=0, ignore_eos=True)))

# Stop strings.
word = greedy.text.split()[3]
mine = ask(prompt=PROMPT, max_tokens=24, temperature=0.0, ignore_eos=True, stop=[word])
check("a stop string ends the text before it", mine.reason == "stop" and mine.text == greedy.text[:greedy.text.index(word)],
      repr(mine.text))

# Messages.
messages = [dict(role="user", content="Tell me a story. <|im_start|>")]
chat = post("/v1/chat/completions", dict(messages=messages, max_tokens=12, temperature=0))
if chat[0] == 200:
    mine = ask(messages=messages, max_tokens=12, temperature=0.0, model=model)
    check("messages give the text of /v1/chat/completions", mine.text == chat[1]["choices"][0]["message"]["content"],
          repr(mine.text)[:60])
    check("and its prompt", mine.usage.prompt_tokens == chat[1]["usage"]["prompt_tokens"])
    refused("a role that is none", Code.INVALID_ARGUMENT, "role", messages=[dict(role="king", content="")])
else:
    refused("messages without a chat template", Code.INVALID_ARGUMENT, "chat template", messages=messages)

# Errors.
ctx = post("/tokenize", dict(prompt="a"))[1]["max_model_len"]
refused("temperature 2.5", Code.INVALID_ARGUMENT, "temperature is 2.5", prompt="a", temperature=2.5)
refused("temperature NaN", Code.INVALID_ARGUMENT, "temperature is", prompt="a", temperature=math.nan)
refused("top_p 0", Code.INVALID_ARGUMENT, "top_p is 0", prompt="a", top_p=0.0)
refused("min_p 2", Code.INVALID_ARGUMENT, "min_p is 2", prompt="a", min_p=2.0)
refused("top_k over the vocabulary", Code.INVALID_ARGUMENT, "top_k is", prompt="a", top_k=(1 << 32) - 1)
refused("21 alternatives", Code.INVALID_ARGUMENT, "20", prompt="a", top_logprobs=21)
refused("max_tokens over the context", Code.INVALID_ARGUMENT, str(ctx + 1), prompt="a", max_tokens=ctx + 1)
refused("prompt and max_tokens over the context", Code.INVALID_ARGUMENT, f"{ctx} tokens", prompt=PROMPT, max_tokens=ctx)
refused("a prompt over the context", Code.INVALID_ARGUMENT, f"the prompt has {ctx + 5}", prompt_ids=[1] * (ctx + 5))
refused("an id that is none", Code.INVALID_ARGUMENT, "prompt", prompt_ids=[1, 1 << 30])
refused("a long prompt (prepared beside the loop)", Code.INVALID_ARGUMENT, "maximum context", prompt="word " * 50000)
refused("another model", Code.NOT_FOUND, model, prompt="a", model="no-such-model")
refused("no prompt at all", Code.INVALID_ARGUMENT, "")
refused("two prompts", Code.INVALID_ARGUMENT, "", prompt="a", prompt_ids=[1])
garbage = channel.unary_stream("/moesaic.v1.InferenceService/Generate", lambda b: b, Reply.FromString)
try:
    list(garbage(b"\xff\xff\xff", timeout=10))
    check("bytes that are no message are refused", False)
except grpc.RpcError as e:
    check("bytes that are no message are refused", e.code() == Code.INVALID_ARGUMENT, e.details())
many = channel.stream_stream("/moesaic.v1.InferenceService/Generate", Request.SerializeToString, Reply.FromString)
try:
    list(many(iter([]), timeout=10))
    check("a call without a message is refused", False)
except grpc.RpcError as e:
    check("a call without a message is refused", e.code() == Code.INVALID_ARGUMENT, e.details())

# Cancel: the engine stops. The deadline does the same.
LONG = dict(prompt=PROMPT, max_tokens=ctx - len(tokens) - 1, ignore_eos=True)


def settles(what, begun):
    """Few tokens are made after the client left."""
    time.sleep(0.2)
    before = metric("moesaic_generation_tokens_total")
    time.sleep(0.3)
    after = metric("moesaic_generation_tokens_total")
    made = after - begun
    check(what, before == after and made < LONG["max_tokens"], f"{made:.0f} of {LONG['max_tokens']} tokens")


begun = metric("moesaic_generation_tokens_total")
call = generate(Request(**LONG), timeout=120)
for _, reply in zip(range(3), call):
    pass
call.cancel()
settles("after a cancel the sequence stops", begun)
begun = metric("moesaic_generation_tokens_total")
try:
    list(generate(Request(**LONG), timeout=0.05))
    print("ok    (the model is faster than the deadline of 50 ms)")
except grpc.RpcError as e:
    check("a deadline that passes is DEADLINE_EXCEEDED", e.code() == Code.DEADLINE_EXCEEDED, e.code())
    settles("and the sequence stops", begun)

# Many at once.
with concurrent.futures.ThreadPoolExecutor(16) as threads:
    jobs = [threads.submit(ask, prompt=PROMPT, max_tokens=24, temperature=0.0, ignore_eos=True) for _ in range(32)]
    check("32 calls, 16 at a time, all the same answer", all(j.result().ids == greedy.ids for j in jobs))
check("nothing is left running", metric("moesaic_streams_open") == 0)
print("all checks passed")
