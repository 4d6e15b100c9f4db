// The page itself: what happens when something is typed, pressed or heard from the server.

import { Exchange, messagesFor } from "./conversation.mjs";
import { byId } from "./dom.mjs";
import { ExchangeView } from "./exchange-view.mjs";
import { Frames } from "./frames.mjs";
import { knowsMemory } from "./memory.mjs";
import { MemoryChart } from "./memory-chart.mjs";
import { EnginePanel, Monitor } from "./monitor.mjs";
import { offerOpeners, showCost } from "./opening.mjs";
import {
  chatRequest,
  completionRequest,
  curlCommand,
  keyHeaders,
  streamAnswer,
} from "./requests.mjs";
import {
  openInstruments,
  pointAt,
  prepareSettings,
  showModels,
  typedParameters,
} from "./settings.mjs";
import { Stopwatch } from "./stopwatch.mjs";
import { announce, keepAtEnd, scrollToEnd, showCommand } from "./transcript.mjs";

class Playground {
  #exchanges = [];
  #views = new Map();
  /** Aborts the answer that is being written; null when there is none. */
  #running = null;
  #status = "unknown";
  #chart = new MemoryChart();
  #engine = new EnginePanel();
  #monitor = new Monitor((engine, status) => this.#onReading(engine, status));

  constructor() {
    prepareSettings();
    offerOpeners((text) => this.#ask(text));
    byId("composer").addEventListener("submit", (event) => this.#onSubmit(event));
    byId("prompt").addEventListener("keydown", (event) => this.#onKey(event));
    byId("new").addEventListener("click", () => this.#clear());
    byId("key").addEventListener("change", () => this.#monitor.setKey(this.#key));
    for (const radio of document.querySelectorAll("[name=mode]")) {
      radio.addEventListener("change", () => this.#onMode());
    }
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#onEscape();
    });
    this.#monitor.readNow();
    this.#onMode();
    byId("prompt").focus();
  }

  get #key() {
    return byId("key").value.trim();
  }

  get #mode() {
    return document.querySelector("[name=mode]:checked").value;
  }

  #onSubmit(event) {
    event.preventDefault();
    if (this.#running) this.#running.abort();
    else if (byId("prompt").value) this.#ask(byId("prompt").value);
  }

  #onKey(event) {
    // While a word is being composed, as in Chinese, Enter belongs to the input method.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.#running) byId("composer").requestSubmit();
  }

  #onEscape() {
    if (this.#running) this.#running.abort();
    else openInstruments(false);
  }

  #onMode() {
    const isChat = this.#mode === "chat";
    byId("prompt").placeholder = isChat ? "Say something" : "Begin a text, the model goes on";
    byId("system").disabled = !isChat;
  }

  #clear() {
    this.#running?.abort();
    this.#setRunning(null);
    this.#exchanges = [];
    for (const view of this.#views.values()) view.element.remove();
    this.#views.clear();
    this.#chart.setTokens(0);
    byId("opening").hidden = false;
    byId("prompt").focus();
  }

  #ask(text) {
    if (this.#running) return;
    const exchange = new Exchange(this.#mode, text);
    const view = new ExchangeView(exchange, byId("model").value || "model");
    this.#views.get(this.#exchanges.at(-1))?.offer([]);
    this.#exchanges.push(exchange);
    this.#views.set(exchange, view);
    byId("opening").hidden = true;
    byId("prompt").value = "";
    byId("transcript").append(view.element);
    this.#answer(exchange);
  }

  #again(exchange) {
    exchange.kept = "";
    this.#answer(exchange);
  }

  #goOn(exchange) {
    exchange.kept = exchange.answer;
    this.#answer(exchange);
  }

  #requestFor(exchange) {
    const model = byId("model").value || undefined;
    const wantsLogprobs = byId("logprobs").checked;
    const parameters = typedParameters();
    if (exchange.mode === "completion") {
      return completionRequest(model, exchange.text, parameters, wantsLogprobs);
    }
    const chat = this.#exchanges.filter(({ mode }) => mode === "chat");
    return chatRequest(model, byId("system").value, messagesFor(chat), parameters, wantsLogprobs);
  }

  async #answer(exchange) {
    const view = this.#views.get(exchange);
    const stopwatch = new Stopwatch(performance.now());
    const running = new AbortController();
    this.#setRunning(running);
    exchange.answer = exchange.kept;
    view.begin();
    scrollToEnd();
    let ending = "stopped";
    let failure = null;
    try {
      exchange.request = this.#requestFor(exchange);
      ending = await this.#read(exchange, view, stopwatch, running.signal);
    } catch (error) {
      if (error.name !== "AbortError") failure = error;
    }
    // A conversation that was cleared meanwhile has nothing left to show.
    if (this.#running === running) this.#setRunning(null);
    if (!this.#views.has(exchange)) return;
    keepAtEnd(() => {
      view.end();
      view.showFigures(stopwatch, failure ? null : ending);
      view.offer(this.#actionsFor(exchange));
      if (failure) view.fail(failure);
    });
    if (failure) this.#onFailure(failure);
    else
      announce(
        ending === "stopped" ? "Stopped." : `Answer complete, ${stopwatch.numTokens} tokens.`,
      );
  }

  /** Write down the answer as it arrives. Returns why it ended. */
  async #read(exchange, view, stopwatch, signal) {
    const hasLogprobs = byId("logprobs").checked;
    let [parts, usage, ending] = [[], null, null];
    const frames = new Frames(() => {
      if (!this.#views.has(exchange)) return;
      if (usage) this.#chart.setTokens(usage.total_tokens);
      keepAtEnd(() => {
        for (const { text, tokens } of parts) view.add(text, tokens, hasLogprobs);
        view.showFigures(stopwatch);
      });
      parts = [];
    });
    try {
      for await (const part of streamAnswer(exchange.request, { key: this.#key, signal })) {
        exchange.answer += part.text;
        parts.push(part);
        usage = part.usage ?? usage;
        ending = part.finishReason ?? ending;
        if (part.usage) stopwatch.note(performance.now(), part.usage.completion_tokens);
        frames.request();
      }
    } finally {
      frames.flush();
    }
    return ending;
  }

  #actionsFor(exchange) {
    const actions = [
      ["Regenerate", () => this.#again(exchange)],
      ["Copy as curl", () => this.#showCurl(exchange)],
    ];
    if (exchange.mode === "completion" && exchange.answer) {
      actions.unshift(["Continue", () => this.#goOn(exchange)]);
    }
    return exchange.request ? actions : actions.slice(0, 1);
  }

  #onFailure(error) {
    announce(error.message);
    if (error.status === 401) pointAt("key");
    else if (!(error.param && pointAt(error.param))) byId("prompt").focus();
    if (error.code === "connection_lost") this.#monitor.readNow();
  }

  #showCurl(exchange) {
    showCommand(curlCommand(location.origin, exchange.request, this.#key !== ""));
  }

  #setRunning(running) {
    this.#running = running;
    const button = byId("send");
    button.textContent = running ? "Stop" : "Send";
    button.classList.toggle("stops", running !== null);
    if (
      !running &&
      (document.activeElement === document.body || document.activeElement === button)
    ) {
      byId("prompt").focus();
    }
  }

  #onReading(engine, status) {
    if (status !== this.#status) {
      byId("status").dataset.status = status;
      byId("status").textContent = status;
      if (status === "ready") this.#loadModels();
      if (status === "key needed" && !this.#running) pointAt("key");
      else if (document.activeElement === byId("key")) this.#leaveKey();
    }
    this.#status = status;
    this.#engine.show(engine);
    if (engine && knowsMemory(engine)) {
      this.#chart.setFacts(engine);
      showCost(engine);
    }
  }

  #leaveKey() {
    openInstruments(false);
    byId("prompt").focus();
  }

  async #loadModels() {
    const response = await fetch("/v1/models", { headers: keyHeaders(this.#key) }).catch(
      () => null,
    );
    if (response?.ok) showModels((await response.json()).data.map(({ id }) => id));
  }
}

new Playground();
