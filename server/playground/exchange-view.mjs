// One exchange on the page.

import { make, makeAction } from "./dom.mjs";
import { TokenCutter } from "./logprobs.mjs";
import { adviceFor } from "./requests.mjs";
import { formatMs, formatRate } from "./stopwatch.mjs";
import { TokenText } from "./tokens.mjs";

const ENDINGS = { stop: "complete", length: "cut at max_tokens", stopped: "stopped" };

/** The prompt, the answer while it is written, its figures, and what can be done with it. */
export class ExchangeView {
  #exchange;
  #prompt;
  #answer;
  #cutter;
  #tokens;
  #figures = make("div", { className: "figures" });
  #actions = make("div", { className: "actions" });
  #failure = make("div", { className: "failure", hidden: true });

  constructor(exchange, model) {
    this.#exchange = exchange;
    this.#prompt = make("span", { className: "typed" }, exchange.prompt);
    this.#answer = make("span", { className: "answer" });
    this.element = make(
      "article",
      { className: `exchange ${exchange.mode}` },
      ...this.#turns(model),
    );
    this.element.setAttribute("aria-label", exchange.mode === "chat" ? "Exchange" : "Completion");
  }

  #turns(model) {
    const below = [this.#failure, this.#actions];
    if (this.#exchange.mode === "completion") {
      const text = make("p", { className: "text written document" }, this.#prompt, this.#answer);
      return [turn(model, [text, ...below], this.#figures)];
    }
    const typed = make("p", { className: "text" }, this.#prompt);
    const written = make("p", { className: "text written" }, this.#answer);
    return [turn("you", [typed]), turn(model, [written, ...below], this.#figures)];
  }

  /** Get ready for an answer that begins with what the exchange keeps. */
  begin() {
    this.#failure.hidden = true;
    this.#actions.replaceChildren();
    this.#figures.replaceChildren();
    if (!this.#exchange.kept) this.#answer.replaceChildren();
    this.#cutter = new TokenCutter();
    this.#tokens ??= new TokenText(this.#answer);
    this.element.classList.add("writing");
    // Read out when it is complete, not word by word.
    this.element.setAttribute("aria-busy", "true");
  }

  /** Show what has arrived. With tokens, the text is cut where they end. */
  add(text, tokens, hasLogprobs) {
    if (hasLogprobs) this.#show(this.#cutter.push(text, tokens));
    else if (text) this.#show([[text, null]]);
  }

  #show(pieces) {
    for (const [text, token] of pieces) {
      // A base model's answer begins with the space after the prompt: in a turn of its own it would
      // only look indented.
      const isFirst = this.#exchange.mode === "chat" && !this.#answer.hasChildNodes();
      const shown = isFirst ? text.trimStart() : text;
      if (shown) this.#tokens.append([[shown, token]]);
    }
  }

  /** Show how it went so far. */
  showFigures(stopwatch, ending = null) {
    const figures = [];
    const rate = stopwatch.tokensPerSecond;
    if (stopwatch.firstTokenMs !== null)
      figures.push(`${formatMs(stopwatch.firstTokenMs)} to first`);
    if (rate !== null) figures.push(`${formatRate(rate)} tokens/s`);
    if (stopwatch.numTokens) figures.push(`${stopwatch.numTokens} tokens`);
    if (ending) figures.push(ENDINGS[ending] ?? ending);
    this.#figures.replaceChildren(...figures.map((figure) => make("span", {}, figure)));
  }

  /** The answer is over, one way or another. */
  end() {
    this.#show(this.#cutter.finish());
    this.element.classList.remove("writing");
    this.element.removeAttribute("aria-busy");
  }

  fail(error) {
    this.#failure.replaceChildren(make("strong", {}, error.message), adviceFor(error));
    this.#failure.hidden = false;
  }

  /** The words below the answer: pairs of a label and what it does. */
  offer(actions) {
    this.#actions.replaceChildren(...actions.map(([label, act]) => makeAction(label, act)));
  }
}

function turn(who, content, figures = "") {
  const margin = make(
    "div",
    { className: "margin" },
    make("div", { className: "who" }, who),
    figures,
  );
  return make("div", { className: "turn" }, margin, make("div", {}, ...content));
}
