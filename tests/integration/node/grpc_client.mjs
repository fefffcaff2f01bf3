// gRPC's own client for Node (no part of gRPC core in it) against a coordinator's gRPC API.
//
//   node grpc_client.mjs GRPC_ADDRESS HTTP_URL
//
// Health, an answer that equals the one over HTTP, errors, a cancelled stream. Exits 0 when all is well.
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address, url] = process.argv.slice(2);
const proto = fileURLToPath(new URL("../../../proto", import.meta.url));
const files = loader.loadSync(["moesaic/v1/inference.proto", "moesaic/v1/health.proto"], { includeDirs: [proto], keepCase: true, enums: String, arrays: true });
const api = grpc.loadPackageDefinition(files);
const credentials = grpc.credentials.createInsecure(), options = { "grpc.enable_http_proxy": 0 };
const deadline = () => ({ deadline: Date.now() + 60_000 });

const health = new api.grpc.health.v1.Health(address, credentials, options);
const status = await new Promise((done, fail) => health.Check({}, deadline(), (e, reply) => (e ? fail(e) : done(reply.status))));
assert.equal(status, "SERVING");

const service = new api.moesaic.v1.InferenceService(address, credentials, options);
const generate = async (request) => {
  const replies = [];
  for await (const reply of service.Generate(request, deadline())) replies.push(reply);
  return replies;
};
const http = async (path, body) =>
  (await fetch(url + path, body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();

const ask = { prompt: "The fox said to the king, and", max_tokens: 24, temperature: 0.8, top_p: 0.9, seed: 11 };
const replies = await generate(ask);
const want = await http("/v1/completions", { ...ask, return_token_ids: true });
assert.ok(replies.length > 5, `it streams: ${replies.length} messages`);
assert.equal(replies.map((r) => r.text).join(""), want.choices[0].text);
assert.deepEqual(replies.flatMap((r) => r.token_ids), want.choices[0].token_ids);
assert.equal(replies.at(-1).finish_reason, want.choices[0].finish_reason);

for (const bad of [{}, { prompt: "x", temperature: 99 }]) {
  const e = await generate(bad).then(() => null, (error) => error);
  assert.equal(e?.code, grpc.status.INVALID_ARGUMENT, `${e}`);
}

const call = service.Generate({ prompt: "Once", max_tokens: 400, ignore_eos: true, seed: 1 }, deadline());
call.on("error", (e) => assert.equal(e.code, grpc.status.CANCELLED));
await new Promise((done) => call.once("data", done));
call.cancel();
for (let i = 0; ; i++) {
  const { engine } = await http("/v1/cluster");
  if (!engine.running && !engine.kv_blocks_used) break;
  assert.ok(i < 200, `a cancelled stream still has its blocks: ${JSON.stringify(engine)}`);
  await new Promise((done) => setTimeout(done, 50));
}
service.close();
health.close();
console.log("ok");
