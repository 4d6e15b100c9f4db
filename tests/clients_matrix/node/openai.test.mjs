// The OpenAI library for JavaScript, unmodified.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "none", maxRetries: 0 });
const model = "demo";
const prompt = "Once upon a time there was a";
const messages = [{ role: "user", content: prompt }];
const greedy = { model, temperature: 0, max_tokens: 24 };

test("chat, whole and streamed", async () => {
  const whole = await client.chat.completions.create({ ...greedy, messages });
  const text = whole.choices[0].message.content;
  assert.equal(whole.usage.completion_tokens, 24);
  const runner = client.chat.completions.stream({
    ...greedy, messages, stream_options: { include_usage: true },
  });
  let deltas = "";
  runner.on("content", (delta) => { deltas += delta; });
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].message.content, text);
  assert.equal(deltas, text);
  assert.deepEqual(final.usage, whole.usage);
});

test("completions, streamed, and left in the middle", async () => {
  const whole = await client.completions.create({ ...greedy, prompt });
  let text = "";
  for await (const chunk of await client.completions.create({ ...greedy, prompt, stream: true })) {
    text += chunk.choices[0].text;
  }
  assert.equal(text, whole.choices[0].text);
  for await (const chunk of await client.completions.create({ ...greedy, prompt, stream: true })) {
    assert.ok(chunk.id);
    break;
  }
});

test("structured output", async () => {
  const Pet = z.object({ kind: z.enum(["cat", "dog"]), good: z.boolean() });
  const answer = await client.chat.completions.parse({
    ...greedy, messages, max_tokens: 60, response_format: zodResponseFormat(Pet, "pet"),
  });
  assert.deepEqual(Object.keys(answer.choices[0].message.parsed), ["kind", "good"]);
});

test("responses, streamed", async () => {
  const wanted = { model, temperature: 0, max_output_tokens: 24, input: prompt };
  const whole = await client.responses.create(wanted);
  const stream = client.responses.stream(wanted);
  const final = await stream.finalResponse();
  assert.equal(final.output_text, whole.output_text);
});

test("tools, streamed, in chats and responses", async () => {
  const caller = new OpenAI({ baseURL: process.env.TOOLS_URL, apiKey: "none", maxRetries: 0 });
  const parameters = {
    type: "object", properties: { city: { enum: ["Bergen", "Oslo"] } },
    required: ["city"], additionalProperties: false,
  };
  const weather = { name: "weather", parameters, strict: true };
  const limits = { model, temperature: 0, tool_choice: "required", parallel_tool_calls: false };
  const runner = caller.chat.completions.stream({
    ...limits, max_tokens: 80, messages, tools: [{ type: "function", function: weather }],
  });
  let pieces = 0;
  runner.on("tool_calls.function.arguments.delta", () => { pieces += 1; });
  const { choices: [choice] } = await runner.finalChatCompletion();
  assert.equal(choice.finish_reason, "tool_calls");
  assert.ok(pieces > 0);
  const [call] = choice.message.tool_calls;
  assert.ok(parameters.properties.city.enum.includes(JSON.parse(call.function.arguments).city));

  const { output: [item] } = await caller.responses.stream({
    ...limits, max_output_tokens: 80, input: prompt, tools: [{ type: "function", ...weather }],
  }).finalResponse();
  assert.equal(item.type, "function_call");
  assert.equal(item.arguments, call.function.arguments);
});

test("embeddings and models", async () => {
  const { data } = await client.embeddings.create({ model, input: ["a red ball", "a ball"] });
  assert.equal(data.length, 2);
  assert.ok(Math.abs(data[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-4);
  const names = [];
  for await (const entry of client.models.list()) names.push(entry.id);
  assert.deepEqual(names, [model]);
});

test("errors have the library's classes", async () => {
  const wrong = { ...greedy, messages, temperature: 3 };
  await assert.rejects(client.chat.completions.create(wrong), OpenAI.BadRequestError);
  const other = { ...greedy, messages, model: "other" };
  await assert.rejects(client.chat.completions.create(other), OpenAI.NotFoundError);
});
