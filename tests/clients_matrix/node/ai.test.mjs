// The Vercel AI SDK, unmodified, with its provider for servers like OpenAI's.
import assert from "node:assert/strict";
import test from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "dijiang",
  baseURL: process.env.BASE_URL,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const prompt = "Once upon a time there was a";
const wanted = { model: provider("demo"), prompt, temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
const Pet = z.object({ kind: z.enum(["cat", "dog"]), good: z.boolean() });

test("generateText and streamText say the same", async () => {
  const whole = await generateText(wanted);
  assert.equal(whole.finishReason, "length");
  assert.equal(whole.usage.outputTokens, 24);
  const stream = streamText(wanted);
  let text = "";
  let pieces = 0;
  for await (const piece of stream.textStream) {
    text += piece;
    pieces += 1;
  }
  assert.equal(text, whole.text);
  assert.ok(pieces > 10);
  assert.equal((await stream.usage).outputTokens, 24);
});

test("the completion endpoint", async () => {
  const model = provider.completionModel("demo");
  const { text } = await generateText({ ...wanted, model });
  assert.ok(text.length > 0);
});

test("structured output, whole and streamed", async () => {
  const asked = { ...wanted, maxOutputTokens: 60, output: Output.object({ schema: Pet }) };
  const whole = await generateText(asked);
  Pet.parse(whole.output);
  const stream = streamText(asked);
  const partial = [];
  for await (const object of stream.partialOutputStream) partial.push(object);
  assert.deepEqual(partial.at(-1), whole.output);
});

test("tools, whole and streamed", async () => {
  const caller = createOpenAICompatible({ name: "dijiang", baseURL: process.env.TOOLS_URL });
  const cities = ["Bergen", "Oslo"];
  const weather = tool({ inputSchema: z.object({ city: z.enum(cities) }) });
  const asked = {
    ...wanted, model: caller("demo"), maxOutputTokens: 120, tools: { weather }, toolChoice: "required",
  };
  const whole = await generateText(asked);
  assert.equal(whole.finishReason, "tool-calls");
  for (const call of whole.toolCalls) assert.ok(cities.includes(call.input.city));
  const calls = await streamText(asked).toolCalls;
  assert.deepEqual(calls.map((call) => call.input), whole.toolCalls.map((call) => call.input));
});

test("embeddings", async () => {
  const { embedding } = await embed({ model: provider.embeddingModel("demo"), value: "a ball" });
  assert.ok(embedding.length > 8);
});

test("our errors come through", async () => {
  await assert.rejects(generateText({ ...wanted, temperature: 3 }), /temperature must be/);
});
