// The picture of the whole idea: one line stays flat while the other climbs.

import { byId, makeSvg, setAttributes } from "./dom.mjs";
import {
  axisTokens,
  breakEvenTokens,
  formatBytes,
  formatCount,
  formatRatio,
  knowsMemory,
} from "./memory.mjs";

const WIDTH = 320;
const TOP = 18;
const BOTTOM = 130;

/** Draws one sequence's memory by its length. Owned by the page. */
export class MemoryChart {
  #svg = byId("memory-chart");
  #facts = null;
  #tokens = 0;

  setFacts(facts) {
    const isNew = facts.stateBytes !== this.#facts?.stateBytes;
    this.#facts = facts;
    if (isNew) this.#draw();
  }

  setTokens(tokens) {
    if (tokens === this.#tokens) return;
    this.#tokens = tokens;
    this.#draw();
  }

  #draw() {
    const facts = this.#facts;
    byId("memory-tokens").textContent = formatCount(this.#tokens);
    if (!knowsMemory(facts)) return;
    const kvBytes = this.#tokens * facts.parentBytesPerToken;
    byId("memory-state").textContent = formatBytes(facts.stateBytes);
    byId("memory-kv").textContent = formatBytes(kvBytes);
    byId("memory-note").textContent = describeMemory(this.#tokens, kvBytes, facts);
    byId("brief").textContent = this.#tokens
      ? `state ${formatBytes(facts.stateBytes)}, KV ${formatBytes(kvBytes)}`
      : "";
    this.#svg.setAttribute(
      "aria-label",
      `At ${this.#tokens} tokens the state has ${formatBytes(facts.stateBytes)}, ` +
        `the KV cache would have ${formatBytes(kvBytes)}`,
    );
    this.#svg.replaceChildren(...shapes(this.#tokens, facts));
  }
}

function describeMemory(tokens, kvBytes, facts) {
  const even = breakEvenTokens(facts);
  if (tokens < even)
    return `The state stays as it is. From ${formatCount(even)} tokens on it is the smaller one.`;
  return `The KV cache of the parent would be ${formatRatio(kvBytes, facts.stateBytes)} the state by now.`;
}

function shapes(tokens, facts) {
  const end = axisTokens(tokens, facts);
  const top = Math.max(end * facts.parentBytesPerToken, 1.2 * facts.stateBytes);
  const x = (length) => (WIDTH * length) / end;
  const y = (bytes) => BOTTOM - ((BOTTOM - TOP) * bytes) / top;
  const here = x(tokens);
  const kv = y(tokens * facts.parentBytesPerToken);
  const kvEnd = y(end * facts.parentBytesPerToken);
  const state = y(facts.stateBytes);
  const ahead = makeSvg("path", { class: "kv ahead", d: `M${here} ${kv}L${WIDTH} ${kvEnd}` });
  const endLabel = makeSvg(
    "text",
    { x: WIDTH, y: BOTTOM + 14, "text-anchor": "end" },
    `${formatCount(end)} tokens`,
  );
  const labels = [
    makeSvg("text", { x: WIDTH, y: kvEnd - 7, "text-anchor": "end" }, "KV cache of the parent"),
    makeSvg("text", { class: "state-name", x: WIDTH, y: state - 6, "text-anchor": "end" }, "state"),
    makeSvg("text", { x: 0, y: BOTTOM + 14 }, "0"),
    endLabel,
  ];
  const lines = [
    makeSvg("line", { class: "axis", x1: 0, x2: WIDTH, y1: BOTTOM, y2: BOTTOM }),
    makeSvg("path", { class: "area", d: `M0 ${BOTTOM}L${here} ${kv}V${BOTTOM}Z` }),
    makeSvg("path", { class: "kv", d: `M0 ${BOTTOM}L${here} ${kv}` }),
    ahead,
    makeSvg("line", { class: "state", x1: 0, x2: WIDTH, y1: state, y2: state }),
  ];
  if (!tokens) return [...lines, ...labels];
  const hairline = makeSvg("line", {
    class: "here",
    x1: here,
    x2: here,
    y1: BOTTOM,
    y2: Math.min(kv, state),
  });
  const dots = [kv, state].map((cy) => makeSvg("circle", { class: "dot", cx: here, cy, r: 3.5 }));
  setAttributes(dots[1], { class: "dot of-state" });
  return [...lines, hairline, ...labels, ...dots];
}
