import assert from "node:assert/strict";
import { test } from "node:test";

import {
  TokenCutter,
  formatProbability,
  rankTokens,
  readChatLogprobs,
  readCompletionLogprobs,
  spell,
  surprise,
} from "../../server/playground/logprobs.mjs";

const utf8 = new TextEncoder();
const token = (name, bytes = utf8.encode(name)) => ({ name, bytes, logprob: -1, alternatives: [] });
const texts = (pieces) => pieces.map(([text, token]) => [text, token?.name ?? null]);

test("a text is cut where its tokens end", () => {
  const cutter = new TokenCutter();
  assert.deepEqual(texts(cutter.push(" the", [token(" the")])), [[" the", " the"]]);
  assert.deepEqual(texts(cutter.push(" end.", [token(" end"), token(".")])), [
    [" end", " end"],
    [".", "."],
  ]);
  assert.deepEqual(cutter.finish(), []);
});

test("tokens of half a character wait for the other half", () => {
  const cutter = new TokenCutter();
  const [a, b, c, d] = utf8.encode("\u{1f600}");
  const halves = [token("first", Uint8Array.of(a, b)), token("second", Uint8Array.of(c, d))];
  assert.deepEqual(texts(cutter.push("", [halves[0]])), []);
  assert.deepEqual(texts(cutter.push("\u{1f600}", [halves[1]])), [["\u{1f600}", "second"]]);
});

test("text that is held back comes later than its tokens", () => {
  const cutter = new TokenCutter();
  assert.deepEqual(cutter.push("", [token("EN"), token("D")]), []);
  assert.deepEqual(texts(cutter.push("END", [])), [
    ["EN", "EN"],
    ["D", "D"],
  ]);
});

test("a stop cuts the last token short", () => {
  const cutter = new TokenCutter();
  assert.deepEqual(cutter.push("wo", [token("world")]), []);
  assert.deepEqual(texts(cutter.finish()), [["wo", "world"]]);
});

test("a special token that the text leaves out does not shift those behind it", () => {
  const cutter = new TokenCutter();
  const pieces = cutter.push("he", [token("<|endoftext|>"), token("he")]);
  assert.deepEqual(texts(pieces), [["he", "he"]]);
  assert.deepEqual(texts(cutter.push("", [token("<|endoftext|>")])), []);
  assert.deepEqual(texts(cutter.push(" end", [token(" end")])), [[" end", " end"]]);
  assert.deepEqual(cutter.finish(), []);
});

test("text that fits no token is shown all the same", () => {
  const cutter = new TokenCutter();
  assert.deepEqual(texts(cutter.push("abc", [token("x")])), [["abc", null]]);
  assert.deepEqual(texts(cutter.push("y", [])), []);
  assert.deepEqual(texts(cutter.finish()), [["y", null]]);
});

test("both endpoints' logprobs are read alike", () => {
  const chat = readChatLogprobs({
    content: [
      {
        token: "a",
        logprob: -0.5,
        bytes: [97],
        top_logprobs: [{ token: "b", logprob: -1, bytes: [98] }],
      },
    ],
  });
  const completion = readCompletionLogprobs({
    tokens: ["a"],
    token_logprobs: [-0.5],
    top_logprobs: [{ b: -1 }],
    text_offset: [0],
  });
  assert.deepEqual(chat, completion);
  assert.deepEqual(readChatLogprobs(null), []);
  assert.deepEqual(readCompletionLogprobs(undefined), []);
});

test("part of a character is spelled in bytes by the completions endpoint", () => {
  const [read] = readCompletionLogprobs({
    tokens: ["bytes:\\xf0\\x9f"],
    token_logprobs: [-1],
    top_logprobs: [null],
    text_offset: [0],
  });
  assert.deepEqual([...read.bytes], [0xf0, 0x9f]);
});

test("what might have stood there is told once, the likeliest first", () => {
  const [read] = readCompletionLogprobs({
    tokens: ["a"],
    token_logprobs: [-3],
    top_logprobs: [{ a: -3, b: -1, c: -2 }],
    text_offset: [0],
  });
  assert.deepEqual(
    rankTokens(read).map(({ name }) => name),
    ["b", "c", "a"],
  );
  assert.deepEqual(
    rankTokens(read).map(({ isChosen }) => isChosen),
    [false, false, true],
  );
});

test("halves of characters are told apart though they are spelled alike", () => {
  const half = (byte, logprob) => ({ token: "\ufffd", bytes: [byte], logprob });
  const [read] = readChatLogprobs({
    content: [
      { ...half(0xe4, -2), top_logprobs: [half(0xf0, -1), half(0xe4, -2), half(0xe5, -3)] },
    ],
  });
  assert.deepEqual(
    rankTokens(read).map(({ name }) => name),
    ["f0", "e4", "e5"],
  );
  assert.equal(rankTokens(read)[1].isChosen, true);
});

test("a token is the more surprising the less likely it was", () => {
  assert.deepEqual(
    [0.9, 0.3, 0.1, 0.03, 0.001].map((p) => surprise(Math.log(p))),
    [0, 1, 2, 3, 4],
  );
  const shown = [1, 0.5, 0.042, 0.0001].map((p) => formatProbability(Math.log(p)));
  assert.deepEqual(shown, ["100%", "50%", "4.2%", "<0.1%"]);
  assert.equal(spell(utf8.encode(" a\n")), "\u00b7a\u21b5");
});
