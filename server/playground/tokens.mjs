// An answer whose tokens can be looked at: how likely each was, and what else it might have been.

import { byId, make } from "./dom.mjs";
import { formatProbability, rankTokens, surprise } from "./logprobs.mjs";

/** Shows the pieces of one answer. Arrow keys walk through its tokens. */
export class TokenText {
  #element;
  #tip = byId("token-tip");
  #tokens = new WeakMap();

  constructor(element) {
    this.#element = element;
    element.addEventListener("pointerover", (event) => this.#show(event.target));
    element.addEventListener("pointerleave", () => this.#hide());
    element.addEventListener("focusin", (event) => this.#show(event.target));
    element.addEventListener("focusout", () => this.#hide());
    element.addEventListener("keydown", (event) => this.#walk(event));
  }

  append(pieces) {
    for (const [text, token] of pieces) {
      this.#element.append(token === null ? text : this.#spanOf(text, token));
    }
  }

  #spanOf(text, token) {
    const span = make("span", { className: `token s${surprise(token.logprob)}` }, text);
    // One stop for the tab key in an answer, not one for every token.
    span.tabIndex = this.#element.querySelector(".token") ? -1 : 0;
    this.#tokens.set(span, token);
    return span;
  }

  #walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const spans = [...this.#element.querySelectorAll(".token")];
    const next = spans[spans.indexOf(event.target) + step];
    if (!step || !next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  #show(span) {
    const token = this.#tokens.get(span);
    if (!token) {
      this.#hide();
      return;
    }
    this.#tip.replaceChildren(alternativesTable(token));
    this.#tip.hidden = false;
    span.setAttribute("aria-describedby", this.#tip.id);
    // A token may be broken behind its space: the word is in the last of its pieces.
    const place = [...span.getClientRects()].at(-1);
    const size = this.#tip.getBoundingClientRect();
    const left = Math.min(place.left, document.documentElement.clientWidth - size.width - 8);
    const above = place.top - size.height - 8;
    this.#tip.style.left = `${Math.max(8, left)}px`;
    this.#tip.style.top = `${above > 8 ? above : place.bottom + 8}px`;
  }

  #hide() {
    this.#tip.hidden = true;
  }
}

function alternativesTable(token) {
  const body = rankTokens(token).map(({ name, logprob, isChosen }) => {
    const cells = [make("th", { scope: "row" }, name), make("td", {}, formatProbability(logprob))];
    return make("tr", { className: isChosen ? "chosen" : "" }, ...cells);
  });
  return make("table", {}, make("tbody", {}, ...body));
}
