// What the page shows before the first message.

import { byId, make, makeAction } from "./dom.mjs";
import { formatBytes } from "./memory.mjs";

const OPENERS = [
  "Once upon a time",
  "One day, a little girl found a key",
  "The old robot woke up and said",
];

/** Offer ways to begin; the one that is chosen goes to `ask`. */
export function offerOpeners(ask) {
  const items = OPENERS.map((text) =>
    make(
      "li",
      {},
      makeAction(text, () => ask(text)),
    ),
  );
  byId("opening")
    .querySelector(".openers")
    .append(...items);
}

/** Say what a conversation costs on this server. */
export function showCost(facts) {
  byId("opening-figure").textContent = formatBytes(facts.stateBytes);
  byId("opening-claim").textContent =
    "is all the memory that a conversation takes here, however long it grows. The Transformer it " +
    `came from would need another ${formatBytes(facts.parentBytesPerToken)} for every token.`;
}
