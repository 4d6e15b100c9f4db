// What the page reads in /metrics, the Prometheus text format.

/** The samples by name, those that differ in their labels added up. */
export function parseMetrics(text) {
  const totals = new Map();
  for (const line of text.split("\n")) {
    if (!line.startsWith("dijiang_")) continue;
    // A label may hold spaces and braces: the name is read from one end, the value from the other.
    const name = /^\w+/.exec(line)[0];
    const value = Number(line.slice(line.lastIndexOf(" ") + 1));
    totals.set(name, (totals.get(name) ?? 0) + value);
  }
  return totals;
}

/** The engine as it is now. A number that the server does not know yet is NaN. */
export function readEngine(text) {
  const totals = parseMetrics(text);
  const read = (name) => totals.get(`dijiang_${name}`) ?? NaN;
  return {
    isReady: read("engine_ready") === 1,
    running: read("num_requests_running"),
    waiting: read("num_requests_waiting"),
    slots: read("state_slots"),
    slotsUsed: read("state_slots_used"),
    contextTokens: read("context_tokens"),
    generationTokens: read("generation_tokens_total"),
    stateBytes: read("state_bytes_per_sequence"),
    parentBytesPerToken: read("parent_kv_cache_bytes_per_token"),
  };
}

/** How fast a counter grows, a second, from one reading to the next. */
export class RateMeter {
  #seconds = NaN;
  #total = NaN;

  /** NaN for the first reading, and when the counter began anew because the server did. */
  read(seconds, total) {
    const rate = (total - this.#total) / (seconds - this.#seconds);
    this.#seconds = seconds;
    this.#total = total;
    return rate >= 0 && Number.isFinite(rate) ? rate : NaN;
  }
}
