import assert from "node:assert/strict";
import { test } from "node:test";

import {
  axisTokens,
  breakEvenTokens,
  formatBytes,
  formatRatio,
  knowsMemory,
  roundUp,
} from "../../server/playground/memory.mjs";
import { RateMeter, parseMetrics, readEngine } from "../../server/playground/metrics.mjs";
import { Stopwatch, formatMs, formatRate } from "../../server/playground/stopwatch.mjs";

const FACTS = { stateBytes: 4096, parentBytesPerToken: 512 };

test("the state is the smaller one from the break-even length on", () => {
  const even = breakEvenTokens(FACTS);
  assert.equal(even, 8);
  assert.ok((even - 1) * FACTS.parentBytesPerToken < FACTS.stateBytes);
  assert.ok(even * FACTS.parentBytesPerToken >= FACTS.stateBytes);
  assert.equal(breakEvenTokens({ stateBytes: 4097, parentBytesPerToken: 512 }), 9);
});

test("the picture holds the crossing and the sequence, whatever its length", () => {
  for (const tokens of [0, 1, 7, 8, 100, 12_345, 1_048_576]) {
    const end = axisTokens(tokens, FACTS);
    assert.ok(end > tokens && end >= 3 * breakEvenTokens(FACTS), `${tokens} tokens`);
    assert.equal(axisTokens(tokens, FACTS), roundUp(end));
  }
});

test("an axis ends at a round number", () => {
  assert.deepEqual([1, 3, 19, 21, 51, 1000].map(roundUp), [1, 5, 20, 50, 100, 1000]);
});

test("sizes have three digits", () => {
  const sizes = [0, 512, 1000, 1024, 1536, 1023 * 1024, 2 ** 20, 3.456 * 2 ** 30];
  const shown = ["0 B", "512 B", "0.977 KiB", "1 KiB", "1.5 KiB", "0.999 MiB", "1 MiB", "3.46 GiB"];
  assert.deepEqual(sizes.map(formatBytes), shown);
});

test("a ratio says how many times as much", () => {
  const ratios = [
    [1, 4],
    [4, 4],
    [50, 4],
    [1_234_567, 1],
  ].map(([kv, state]) => formatRatio(kv, state));
  assert.deepEqual(ratios, ["0.25\u00d7", "1.0\u00d7", "13\u00d7", "1,234,567\u00d7"]);
});

const EXPOSITION = `# HELP dijiang_state_slots Slots there are.
# TYPE dijiang_state_slots gauge
dijiang_state_slots{model_name="a {b} c"} 4.0
dijiang_engine_ready{model_name="x"} 1.0
dijiang_request_success_total{finished_reason="stop",model_name="x"} 2.0
dijiang_request_success_total{finished_reason="length",model_name="x"} 3.0
dijiang_state_bytes_per_sequence{model_name="x"} NaN
vllm:num_requests_running{model_name="x"} 9.0
`;

test("metrics are read by name, whatever their labels are", () => {
  const totals = parseMetrics(EXPOSITION);
  assert.equal(totals.get("dijiang_state_slots"), 4);
  assert.equal(totals.get("dijiang_request_success_total"), 5);
  assert.equal(totals.has("vllm:num_requests_running"), false);
});

test("what the server does not know is no number", () => {
  const engine = readEngine(EXPOSITION);
  assert.equal(engine.isReady, true);
  assert.equal(engine.slots, 4);
  assert.ok(Number.isNaN(engine.stateBytes) && Number.isNaN(engine.running));
  assert.equal(knowsMemory(engine), false);
  assert.equal(knowsMemory(null), false);
  assert.equal(knowsMemory(FACTS), true);
});

test("a rate is what a counter grew by, and none when it began anew", () => {
  const meter = new RateMeter();
  assert.ok(Number.isNaN(meter.read(10, 100)));
  assert.equal(meter.read(12, 300), 100);
  assert.ok(Number.isNaN(meter.read(13, 5)));
  assert.equal(meter.read(14, 6), 1);
});

test("the speed leaves out the first tokens, which waited for the prompt", () => {
  const stopwatch = new Stopwatch(1000);
  assert.equal(stopwatch.firstTokenMs, null);
  assert.equal(stopwatch.tokensPerSecond, null);
  stopwatch.note(1200, 2);
  assert.equal(stopwatch.tokensPerSecond, null);
  stopwatch.note(1700, 12);
  stopwatch.note(9000, 12);
  assert.equal(stopwatch.firstTokenMs, 200);
  assert.equal(stopwatch.tokensPerSecond, 20);
  assert.equal(stopwatch.numTokens, 12);
  assert.deepEqual([0.4, 42.4, 1234, 65_432].map(formatMs), ["0 ms", "42 ms", "1.2 s", "65 s"]);
  assert.deepEqual([0.55, 9.94, 1234.5].map(formatRate), ["0.6", "9.9", "1,235"]);
});
