// The official OpenAI client for Node against a running server: answers, streams, aborts, error classes.
//
//   node openai_client.mjs BASE_URL        e.g. http://127.0.0.1:8080/v1
//
// Nothing here depends on what the model says. Exits 0 when everything is as the client's users expect.
import assert from "node:assert/strict";
import OpenAI from "openai";

const base = process.argv[2];
const client = new OpenAI({ baseURL: base, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const messages = [
  { role: "system", content: "You are brief." },
  { role: "user", content: "Tell me about a fox." },
];

const model = (await client.models.list()).data[0].id;
assert.equal((await client.models.retrieve(model)).id, model);

// An answer, and the same as a stream.
const ask = { model, messages, max_tokens: 12, temperature: 0, seed: 1 };
const chat = await client.chat.completions.create(ask);
assert.equal(chat.object, "chat.completion");
assert.equal(chat.usage.total_tokens, chat.usage.prompt_tokens + chat.usage.completion_tokens);
assert.ok(["stop", "length"].includes(chat.choices[0].finish_reason));

let text = "", finish = null, usage = null;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  finish = chunk.choices[0]?.finish_reason ?? finish;
  usage = chunk.usage ?? usage;
}
assert.equal(text, chat.choices[0].message.content);
assert.equal(finish, chat.choices[0].finish_reason);
assert.deepEqual(usage.completion_tokens, chat.usage.completion_tokens);

const helped = await client.chat.completions.stream(ask).finalContent();
assert.equal(helped, text, "the client's own collector agrees");

// A conversation goes on: the history is a part of what is asked.
const turn = [...messages, { role: "assistant", content: text }, { role: "user", content: "And a crow?" }];
const later = await client.chat.completions.create({ ...ask, messages: turn });
assert.ok(later.usage.prompt_tokens > chat.usage.prompt_tokens + chat.usage.completion_tokens);

const many = await client.chat.completions.create({ ...ask, temperature: 0.8, n: 3 });
assert.deepEqual(many.choices.map((c) => c.index), [0, 1, 2]);
const completion = await client.completions.create({ model, prompt: ["The old", "A fox"], max_tokens: 4, echo: true, logprobs: 1 });
assert.ok(completion.choices[1].text.startsWith("A fox"));
assert.equal(completion.choices[0].logprobs.token_logprobs[0], null);

// Left in the middle: the server notices.
const stream = await client.chat.completions.create({ model, messages, stream: true, ignore_eos: true });
for await (const chunk of stream) if (chunk.choices[0]?.delta?.content) break; // breaking aborts
const open = async () => Number(/^moesaic_streams_open (\d+)/m.exec(await (await fetch(new URL("/metrics", base))).text())[1]);
for (let i = 0; i < 200 && (await open()) > 0; i++) await new Promise((done) => setTimeout(done, 50));
assert.equal(await open(), 0, "an aborted stream ends on the server");

// Errors come as the client's own classes.
const wrong = async (kind, param, request) => {
  const e = await client.chat.completions.create({ ...ask, ...request }).then(() => null, (error) => error);
  assert.ok(e instanceof kind, `${e} is no ${kind.name}`);
  assert.equal(e.param, param);
};
await wrong(OpenAI.NotFoundError, "model", { model: "gpt-4" });
await wrong(OpenAI.BadRequestError, "messages", { messages: [] });
await wrong(OpenAI.BadRequestError, "temperature", { temperature: 9 });
await wrong(OpenAI.BadRequestError, "max_tokens", { max_tokens: -1, stream: true });
console.log("ok");
