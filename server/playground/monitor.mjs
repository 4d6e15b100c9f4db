// The engine as it is now, read from /metrics once a second while the page can be seen.

import { byId, make, makeSvg } from "./dom.mjs";
import { formatBytes, formatCount, knowsMemory } from "./memory.mjs";
import { RateMeter, readEngine } from "./metrics.mjs";
import { keyHeaders } from "./requests.mjs";
import { formatRate } from "./stopwatch.mjs";

const PERIOD_MS = 1000;
const MAX_CELLS = 128;
const HISTORY = 60;

/** Polls the metrics. `onReading(engine, status)` is called after each try; engine may be null. */
export class Monitor {
  #onReading;
  #timer = 0;
  #key = "";
  #isReading = false;

  constructor(onReading) {
    this.#onReading = onReading;
    document.addEventListener("visibilitychange", () => this.readNow());
  }

  /** Use this key from now on. */
  setKey(key) {
    this.#key = key;
    this.readNow();
  }

  /** Read at once, and then every second, unless nobody sees it. */
  async readNow() {
    clearTimeout(this.#timer);
    if (document.hidden || this.#isReading) return;
    this.#isReading = true;
    const [engine, status] = await this.#read();
    this.#isReading = false;
    this.#onReading(engine, status);
    // Asking again with the same key would only fill the server's log.
    if (status !== "key needed") this.#timer = setTimeout(() => this.readNow(), PERIOD_MS);
  }

  async #read() {
    const key = this.#key;
    try {
      const response = await fetch("/metrics", { headers: keyHeaders(key), cache: "no-store" });
      if (response.status === 401)
        return key === this.#key ? [null, "key needed"] : [null, "connecting"];
      if (!response.ok) return [null, "unreachable"];
      const engine = readEngine(await response.text());
      return [engine, engine.isReady ? "ready" : "loading"];
    } catch {
      return [null, "unreachable"];
    }
  }
}

/** Shows what the monitor reads. */
export class EnginePanel {
  #rates = [];
  #meter = new RateMeter();

  show(engine) {
    if (!engine) {
      for (const id of ["engine-running", "engine-waiting", "engine-rate"])
        byId(id).textContent = "–";
      return;
    }
    const rate = this.#meter.read(performance.now() / 1000, engine.generationTokens);
    this.#rates = [...this.#rates, rate || 0].slice(-HISTORY);
    byId("engine-running").textContent = formatCount(engine.running);
    byId("engine-waiting").textContent = formatCount(engine.waiting);
    byId("engine-rate").textContent = rate ? formatRate(rate) : "0";
    byId("rate-chart").replaceChildren(makeSvg("path", { d: sparkline(this.#rates) }));
    showSlots(byId("slots"), engine.slotsUsed, engine.slots);
    byId("engine-note").textContent = describeUse(engine);
  }
}

function describeUse(engine) {
  const slots = `${formatCount(engine.slotsUsed)} of ${formatCount(engine.slots)} slots in use.`;
  if (!knowsMemory(engine) || !engine.running) return slots;
  const state = formatBytes(engine.running * engine.stateBytes);
  const kv = formatBytes(engine.contextTokens * engine.parentBytesPerToken);
  return `${slots} What runs has ${state} of state; a KV cache for the same tokens: ${kv}.`;
}

/** A cell for each slot, or for a few of them where there are too many to show. */
function showSlots(element, used, total) {
  if (!(total > 0)) return;
  const slotsPerCell = Math.ceil(total / MAX_CELLS);
  const numCells = Math.ceil(total / slotsPerCell);
  const numUsed = Math.ceil(used / slotsPerCell);
  while (element.children.length > numCells) element.lastChild.remove();
  while (element.children.length < numCells) element.append(make("i"));
  [...element.children].forEach((cell, i) => cell.classList.toggle("used", i < numUsed));
  element.setAttribute("aria-label", `${used} of ${total} slots in use`);
}

function sparkline(rates) {
  const top = Math.max(1, ...rates);
  const x = (i) => (320 * (HISTORY - rates.length + i)) / (HISTORY - 1);
  const points = rates.map(
    (rate, i) => `${x(i).toFixed(1)} ${(35 - (32 * rate) / top).toFixed(1)}`,
  );
  return `M${x(0).toFixed(1)} 36L${points.join("L")}L320 36`;
}
