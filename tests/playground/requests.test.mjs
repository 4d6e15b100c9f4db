import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";

import { Exchange, messagesFor } from "../../server/playground/conversation.mjs";
import { ParameterError, readParameters } from "../../server/playground/parameters.mjs";
import {
  ServerError,
  adviceFor,
  chatRequest,
  completionRequest,
  curlCommand,
  streamAnswer,
} from "../../server/playground/requests.mjs";

function answering(chunks, { status = 200, headers = {}, fails = false } = {}) {
  const body = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(new TextEncoder().encode(chunk));
      if (fails) controller.error(new TypeError("network error"));
      else controller.close();
    },
  });
  const asked = [];
  const fetch = async (...call) => {
    asked.push(call);
    return new Response(body, { status, headers });
  };
  return { fetch, asked };
}

async function read(server, key = "") {
  const parts = [];
  const request = completionRequest("m", "Once", {}, false);
  for await (const part of streamAnswer(request, { key, fetch: server.fetch })) parts.push(part);
  return parts;
}

const event = (data) => `data: ${JSON.stringify(data)}\n\n`;
const chunk = (text) => event({ choices: [{ text, logprobs: null, finish_reason: null }] });

test("an answer comes in parts, and ends with [DONE]", async () => {
  const last = event({ choices: [{ text: "", finish_reason: "length" }] });
  const usage = event({ choices: [], usage: { completion_tokens: 2, total_tokens: 3 } });
  const server = answering([
    chunk("a"),
    ": keep-alive\n\n" + chunk("b"),
    last + usage + "data: [DONE]\n\n",
  ]);
  const parts = await read(server, "sk-1");
  assert.equal(parts.map(({ text }) => text).join(""), "ab");
  assert.equal(parts[2].finishReason, "length");
  assert.equal(parts[3].usage.total_tokens, 3);
  const [[path, options]] = server.asked;
  assert.equal(path, "/v1/completions");
  assert.equal(options.headers.Authorization, "Bearer sk-1");
});

test("a chat's answer is in its deltas", async () => {
  const server = answering([
    event({ choices: [{ delta: { role: "assistant" } }] }) +
      event({ choices: [{ delta: { content: "hi" }, finish_reason: "stop" }] }) +
      "data: [DONE]\n\n",
  ]);
  assert.deepEqual(
    (await read(server)).map(({ text }) => text),
    ["", "hi"],
  );
});

test("a stream that fails ends with the server's own words", async () => {
  const server = answering([
    chunk("a"),
    event({ error: { message: "It died.", code: "engine_dead" } }),
  ]);
  await assert.rejects(read(server), { message: "It died.", code: "engine_dead" });
});

test("a stream that just ends was cut off", async () => {
  await assert.rejects(read(answering([chunk("a")])), { code: "connection_lost", status: 0 });
  await assert.rejects(read(answering([], { fails: true })), { code: "connection_lost" });
});

test("a server that is not there is a lost connection", async () => {
  const fetch = async () => {
    throw new TypeError("Failed to fetch");
  };
  await assert.rejects(read({ fetch }), { code: "connection_lost" });
});

test("a refusal keeps its status, its field and when to come back", async () => {
  const body = JSON.stringify({
    error: { message: "Busy.", code: "engine_overloaded", param: null },
  });
  const server = answering([body], { status: 429, headers: { "Retry-After": "7" } });
  const error = await read(server).catch((error) => error);
  assert.ok(error instanceof ServerError);
  assert.equal(error.status, 429);
  assert.match(adviceFor(error), /in 7 s/);
  await assert.rejects(read(answering(["<html>"], { status: 502 })), { message: /status 502/ });
});

test("every error comes with something to do", () => {
  const codes = [
    "connection_lost",
    "engine_dead",
    "server_draining",
    "engine_overloaded",
    "context_length_exceeded",
    "numerical_error",
    "request_failed",
    null,
  ];
  for (const code of codes)
    assert.match(adviceFor(new ServerError(500, { message: "", code })), /\.$/);
  assert.match(adviceFor(new ServerError(401, { message: "" })), /key/);
  assert.match(adviceFor(new ServerError(400, { message: "", param: "seed" })), /seed/);
});

test("a conversation is sent whole, without what was never answered", () => {
  const [first, failed, last] = ["one", "two", "three"].map((text) => new Exchange("chat", text));
  first.answer = " answer";
  const messages = messagesFor([first, failed, last]);
  assert.deepEqual(
    messages.map(({ role, content }) => [role, content]),
    [
      ["user", "one"],
      ["assistant", " answer"],
      ["user", "three"],
    ],
  );
  const { body } = chatRequest("m", "Be brief.", messages, { temperature: 0 }, true);
  assert.deepEqual(body.messages[0], { role: "system", content: "Be brief." });
  assert.equal(body.logprobs, true);
  assert.equal(chatRequest("m", "", messages, {}, false).body.messages.length, 3);
});

test("a field that is empty is not sent", () => {
  assert.deepEqual(readParameters({ temperature: "", seed: " ", stop: "" }), {});
  const typed = { temperature: "0", top_k: "40", seed: "-7", stop: "END\n\\n\\n\na\\\\b" };
  const fields = { temperature: 0, top_k: 40, seed: -7, stop: ["END", "\n\n", "a\\b"] };
  assert.deepEqual(readParameters(typed), fields);
});

test("what is no number is not sent at all", () => {
  for (const typed of [
    { temperature: "?" },
    { seed: "1.5" },
    { seed: "9007199254740993" },
    { top_p: "1e999" },
  ]) {
    const [name] = Object.keys(typed);
    assert.throws(
      () => readParameters(typed),
      (error) => error instanceof ParameterError && error.param === name,
    );
  }
});

test("a shell reads the command as it was meant, and never sees the key", () => {
  const request = completionRequest("m", "It's `a` $HOME \\ \"b\"\n'", { stop: ["'"] }, false);
  const command = curlCommand("http://127.0.0.1:8000", request, true);
  const script = `curl() { printf '%s\\0' "$@"; }; KEY=k; ${command}`;
  const words = execFileSync("sh", ["-c", script], { encoding: "utf8" }).split("\0");
  assert.equal(words[1], "http://127.0.0.1:8000/v1/completions");
  assert.ok(words.includes("Authorization: Bearer k"));
  const { stream_options: _, ...body } = request.body;
  assert.deepEqual(JSON.parse(words[words.indexOf("-d") + 1]), body);
});
