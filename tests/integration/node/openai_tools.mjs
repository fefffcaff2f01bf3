// Tools and reasoning with the official OpenAI client for Node; what the server's model must say: ../openai_tools.py.
//
//   node openai_tools.mjs BASE_URL        e.g. http://127.0.0.1:8080/v1
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0, timeout: 60_000 });
const tools = [{ type: "function", function: { name: "get_weather", description: "Weather of a place",
  parameters: { type: "object", properties: { city: { type: "string" }, days: { type: "integer" } } } } }];
const messages = [{ role: "user", content: "Weather in Paris?" }];
const ask = { model: (await client.models.list()).data[0].id, tools };

const check = (choice) => {
  assert.equal(choice.finish_reason, "tool_calls");
  assert.equal(choice.message.content, "Let me look.");
  assert.equal(choice.message.tool_calls[0].function.name, "get_weather");
  assert.deepEqual(JSON.parse(choice.message.tool_calls[0].function.arguments), { city: "Paris", days: 2 });
};
const whole = (await client.chat.completions.create({ ...ask, messages })).choices[0];
check(whole);
assert.ok(whole.message.reasoning_content);
check((await client.chat.completions.stream({ ...ask, messages }).finalChatCompletion()).choices[0]);

// The client's own loop: it runs the tool, and asks again with the result.
let ran = null, turns = 0;
const runner = client.chat.completions.runTools({ ...ask, messages, stream: true,
  tools: [{ type: "function", function: { ...tools[0].function, parse: JSON.parse, function: (a) => { ran = a; return "21 degrees"; } } }] },
  { maxChatCompletions: 2 });
runner.on("chatCompletion", () => turns++);
await runner.done();
assert.deepEqual(ran, { city: "Paris", days: 2 });
assert.equal(turns, 2);
console.log("ok");
