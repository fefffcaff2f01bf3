#!/usr/bin/env python3
"""Tools and reasoning with the official OpenAI client, whole and streamed.

    openai_tools.py BASE_URL      e.g. http://127.0.0.1:8080/v1

The server's model must always say: some reasoning, "Let me look.", and a call of get_weather with {"city": "Paris",
"days": 2} (tests/integration/test_openai_client.c has such a one). Exits 0 when everything is as the client's users expect.
"""
import json
import sys

import openai

TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a place",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
WANTED = {"city": "Paris", "days": 2}


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def check(message, finish):
    expect(finish == "tool_calls", finish)
    expect(message.content == "Let me look.", message)
    expect(len(message.tool_calls) == 1 and message.tool_calls[0].type == "function", message)
    call = message.tool_calls[0]
    expect(call.id and call.function.name == "get_weather", call)
    expect(json.loads(call.function.arguments) == WANTED, call)


def main():
    client = openai.OpenAI(base_url=sys.argv[1].rstrip("/"), api_key="none", timeout=60, max_retries=0)
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": "Weather in Paris?"}]
    ask = dict(model=model, tools=TOOLS)

    whole = client.chat.completions.create(messages=messages, **ask).choices[0]
    check(whole.message, whole.finish_reason)
    reasoning = whole.message.reasoning_content
    expect(reasoning and "<" not in reasoning, reasoning)

    # By hand, as OpenAI's guide does it.
    content, thought, calls, finish = "", "", {}, None
    pieces = 0
    for chunk in client.chat.completions.create(messages=messages, stream=True, **ask):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        thought += getattr(choice.delta, "reasoning_content", None) or ""
        for part in choice.delta.tool_calls or []:
            if part.index not in calls:
                expect(part.id and part.type == "function" and part.function.arguments == "", part)
                calls[part.index] = part
            else:
                expect(part.id is None and part.function.name is None, part)
                calls[part.index].function.arguments += part.function.arguments
                pieces += 1
        finish = choice.finish_reason or finish
    expect(content == whole.message.content and thought == reasoning, (content, thought))
    expect(list(calls) == [0] and calls[0].function.name == "get_weather", calls)
    expect(json.loads(calls[0].function.arguments) == WANTED and finish == "tool_calls", calls)
    expect(pieces > 3, f"arguments come as they are written, not in {pieces} pieces")

    # By the client's own collector.
    with client.chat.completions.stream(messages=messages, **ask) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    check(final.message, final.finish_reason)
    expect(len(done) == 1 and json.loads(done[0].arguments) == WANTED, done)

    # The result goes back; so does the message, as the client holds it.
    messages += [whole.message.model_dump(exclude_none=True),
                 {"role": "tool", "tool_call_id": whole.message.tool_calls[0].id, "content": "21 degrees"}]
    again = client.chat.completions.create(messages=messages, **ask).choices[0]
    check(again.message, again.finish_reason)
    expect(again.message.tool_calls[0].id != whole.message.tool_calls[0].id, "each call has an id of its own")

    plain = client.chat.completions.create(messages=messages, tool_choice="none", **ask).choices[0]
    expect(not plain.message.tool_calls and plain.finish_reason == "stop", plain)
    for choice in ("required", {"type": "function", "function": {"name": "now"}}):
        try:
            client.chat.completions.create(messages=messages, tool_choice=choice, **ask)
            raise AssertionError(f"tool_choice {choice} was taken")
        except openai.BadRequestError as e:
            expect(e.param == "tool_choice", e.body)
    print(f"openai {openai.__version__}: tools as expected")


if __name__ == "__main__":
    main()
