// Run by tests/playground/test_scripts.py, or by hand: node --test tests/playground/

import assert from "node:assert/strict";
import { test } from "node:test";

import { EventDecoder } from "../../server/playground/events.mjs";

const bytes = (text) => new TextEncoder().encode(text);

const STREAM =
  ': keep-alive\n\ndata: {"text":"a\u00e9\u{1f600}"}\n\ndata: one\ndata:two\n\n' +
  "event: other\nid: 7\r\ndata: cr\r\ndata: lf\r\n\r\ndata: cr\r\rdata\n\n\n\ndata: [DONE]\n\n";
const EVENTS = ['{"text":"a\u00e9\u{1f600}"}', "one\ntwo", "cr\nlf", "cr", "", "[DONE]"];

test("an event stream is the same wherever it is cut", () => {
  const whole = bytes(STREAM);
  for (let cut = 0; cut <= whole.length; cut += 1) {
    const decoder = new EventDecoder();
    const events = [...decoder.feed(whole.slice(0, cut)), ...decoder.feed(whole.slice(cut))];
    assert.deepEqual(events, EVENTS, `cut at ${cut}`);
  }
});

test("an event stream may come one byte at a time", () => {
  const decoder = new EventDecoder();
  const events = [...bytes(STREAM)].flatMap((byte) => decoder.feed(Uint8Array.of(byte)));
  assert.deepEqual(events, EVENTS);
});

test("an event counts only when it is complete", () => {
  const decoder = new EventDecoder();
  assert.deepEqual(decoder.feed(bytes("data: half\n")), []);
  assert.deepEqual(decoder.feed(bytes("\n")), ["half"]);
  assert.deepEqual(decoder.feed(bytes(": only a comment\n\n")), []);
});

test("the data keeps all of its spaces but the first", () => {
  assert.deepEqual(new EventDecoder().feed(bytes("data:  two \n\n")), [" two "]);
});
