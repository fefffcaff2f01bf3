#!/usr/bin/env python3
"""The official OpenAI client against a running server: answers, streams, aborts, error classes.

    openai_client.py BASE_URL [MODEL] [--sampling]      e.g. http://127.0.0.1:8080/v1

Needs the PyPI package `openai`. Nothing here depends on what the model says, so it runs against the real server
and against the tests' fake engine alike. Exits 0 when everything is as the client's users expect.
"""
import asyncio
import sys
import urllib.request

import openai

CHAT = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Tell me about a fox."}]


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def models(client, model):
    listed = client.models.list().data
    expect(len(listed) == 1, f"one model, not {len(listed)}")
    model = model or listed[0].id
    expect(client.models.retrieve(model).id == model, "retrieve by id")
    try:
        client.models.retrieve("no-such-model")
        raise AssertionError("an unknown model was found")
    except openai.NotFoundError as e:
        expect(e.code == "model_not_found", e.code)
    return model


def answers(client, model):
    chat = client.chat.completions.create(model=model, messages=CHAT, max_tokens=8, temperature=0, seed=1)
    expect(chat.object == "chat.completion", chat.object)
    expect(chat.choices[0].message.role == "assistant", chat)
    expect(isinstance(chat.choices[0].message.content, str), chat)
    expect(chat.choices[0].finish_reason in ("stop", "length"), chat)
    expect(chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens, chat.usage)
    expect(1 <= chat.usage.completion_tokens <= 8, chat.usage)
    expect(chat._request_id, "a request id")
    again = client.chat.completions.create(model=model, messages=CHAT, max_tokens=8, temperature=0, seed=1)
    expect(again.choices[0].message.content == chat.choices[0].message.content, "same seed, same answer")
    many = client.chat.completions.create(model=model, messages=CHAT, max_tokens=4, n=3)
    expect([c.index for c in many.choices] == [0, 1, 2], many)
    lp = client.chat.completions.create(model=model, messages=CHAT, max_tokens=4, logprobs=True, top_logprobs=3)
    for entry in lp.choices[0].logprobs.content:
        expect(entry.logprob <= 0 and len(entry.top_logprobs) == 3, entry)
    text = client.completions.create(model=model, prompt=["The old", "A fox"], max_tokens=4, echo=True, logprobs=1)
    expect(text.choices[0].text.startswith("The old") and text.choices[1].text.startswith("A fox"), text)
    offsets = text.choices[0].logprobs.text_offset
    expect(offsets[0] == 0 and offsets == sorted(offsets), offsets)
    expect(text.choices[0].logprobs.token_logprobs[0] is None, "the first token has no logprob")


def streams(client, model):
    whole = client.chat.completions.create(model=model, messages=CHAT, max_tokens=12, temperature=0)
    pieces, finish, usage, role, ids = [], None, None, None, set()
    with client.chat.completions.create(model=model, messages=CHAT, max_tokens=12, temperature=0, stream=True,
                                        stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            ids.add(chunk.id)
            if not chunk.choices:
                expect(finish is not None, "usage comes after the finish")
                usage = chunk.usage
                continue
            expect(chunk.usage is None, "usage is null until the end")
            delta = chunk.choices[0].delta
            role = role or delta.role
            expect(finish is None, "nothing follows the finish")
            if chunk.choices[0].finish_reason:
                finish = chunk.choices[0].finish_reason
                expect(delta.content is None, "the last chunk's delta is empty")
            else:
                pieces.append(delta.content)
    expect("".join(pieces) == whole.choices[0].message.content, "the stream says what the answer says")
    expect(role == "assistant" and finish == whole.choices[0].finish_reason and len(ids) == 1, (role, finish, ids))
    expect(usage.completion_tokens == whole.usage.completion_tokens, usage)
    text = "".join(c.choices[0].text for c in client.completions.create(model=model, prompt="A fox", max_tokens=6,
                                                                       stream=True, temperature=0))
    expect(text == client.completions.create(model=model, prompt="A fox", max_tokens=6, temperature=0).choices[0].text, text)


def penalties(client, model):
    def ids(**changed):
        ask = dict(model=model, prompt="Once upon a time", max_tokens=24, temperature=0, extra_body={"return_token_ids": True, "ignore_eos": True})
        return client.completions.create(**{**ask, **changed}).choices[0].token_ids
    plain = ids()
    expect(ids(presence_penalty=0, frequency_penalty=0, logit_bias={}) == plain, "neutral values change nothing")
    expect(set(ids(logit_bias={"100": 100})) == {100}, "a bias of 100 forces a token")
    banned = ids(logit_bias={str(plain[0]): -100})
    expect(plain[0] not in banned, "a bias of -100 bans a token")
    expect(set(ids(logit_bias={"100": 30})) == {100}, "a bias of 30 is enough")
    tired = ids(logit_bias={"100": 30}, frequency_penalty=2)
    expect(tired[0] == 100 and set(tired) != {100}, f"each occurrence costs two: {tired}")
    strict = ids(extra_body={"return_token_ids": True, "ignore_eos": True, "repetition_penalty": 4})
    expect(strict != plain and ids(extra_body={"return_token_ids": True, "ignore_eos": True, "repeat_penalty": 4}) == strict, strict)


def running(base):
    with urllib.request.urlopen(base.rsplit("/v1", 1)[0] + "/metrics") as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith("moesaic_streams_open "):
                return float(line.split()[1])
    raise AssertionError("no moesaic_streams_open in /metrics")


async def aborts(base, model):
    client = openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0)
    stream = await client.chat.completions.create(model=model, messages=CHAT, stream=True, extra_body={"ignore_eos": True})
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()
    for _ in range(100):
        if running(base) == 0:
            break
        await asyncio.sleep(0.05)
    expect(running(base) == 0, "an aborted stream ends on the server")
    answers_at_once = await asyncio.gather(*[client.chat.completions.create(model=model, messages=CHAT, max_tokens=5, temperature=0)
                                             for _ in range(8)])
    expect(len({a.choices[0].message.content for a in answers_at_once}) == 1, "company changes no answer")
    await client.close()


def raises(kind, call, param=None):
    try:
        call()
    except kind as e:
        expect(param is None or e.param == param, f"param {e.param}, wanted {param}")
        expect(isinstance(e.body, dict) and set(e.body) >= {"message", "type", "param", "code"}, e.body)
        return e
    raise AssertionError(f"no {kind.__name__}")


def errors(client, model):
    create = client.chat.completions.create
    raises(openai.NotFoundError, lambda: create(model="gpt-4", messages=CHAT), "model")
    raises(openai.BadRequestError, lambda: create(model=model, messages=[]), "messages")
    raises(openai.BadRequestError, lambda: create(model=model, messages=CHAT, temperature=9), "temperature")
    raises(openai.BadRequestError, lambda: create(model=model, messages=CHAT, n=1000), "n")
    raises(openai.BadRequestError, lambda: create(model=model, messages=CHAT, logit_bias={"word": 5}), "logit_bias")
    raises(openai.BadRequestError, lambda: create(model=model, messages=CHAT, max_tokens=-1, stream=True), "max_tokens")
    long = raises(openai.BadRequestError, lambda: create(model=model, messages=[{"role": "user", "content": "fox " * 20000}]))
    expect(long.type == "exceed_context_size_error" and long.code == "context_length_exceeded", long.body)
    expect(long.body["n_prompt_tokens"] > long.body["n_ctx"], long.body)
    unbuilt = raises(openai.InternalServerError, lambda: client.embeddings.create(model=model, input="x"))
    expect(unbuilt.status_code == 501, unbuilt.status_code)


def main():
    sampling = "--sampling" in sys.argv  # is it a real model that answers?
    if sampling:
        sys.argv.remove("--sampling")
    base = sys.argv[1].rstrip("/")
    client = openai.OpenAI(base_url=base, api_key="none", timeout=60)
    model = models(client, sys.argv[2] if len(sys.argv) > 2 else None)
    answers(client, model)
    streams(client, model)
    asyncio.run(aborts(base, model))
    if sampling:
        penalties(client, model)
    errors(client, model)
    print(f"openai {openai.__version__}: all as expected at {base}")


if __name__ == "__main__":
    main()
