// How fast an answer came, as the reader of the page sees it.

export class Stopwatch {
  #startedAt;
  #firstAt = null;
  #lastAt = null;
  #numFirst = 0;
  #numTokens = 0;

  constructor(now) {
    this.#startedAt = now;
  }

  /** The answer has `numTokens` tokens by now, a time in milliseconds. */
  note(now, numTokens) {
    if (numTokens <= this.#numTokens) return;
    if (this.#firstAt === null) {
      this.#firstAt = now;
      this.#numFirst = numTokens;
    }
    this.#lastAt = now;
    this.#numTokens = numTokens;
  }

  get numTokens() {
    return this.#numTokens;
  }

  /** Milliseconds from the question to the first token, or null before it. */
  get firstTokenMs() {
    return this.#firstAt === null ? null : this.#firstAt - this.#startedAt;
  }

  /** After the first token, which waits for the prompt; null until there is a second. */
  get tokensPerSecond() {
    const milliseconds = this.#lastAt - this.#firstAt;
    return milliseconds > 0 ? (1000 * (this.#numTokens - this.#numFirst)) / milliseconds : null;
  }
}

export function formatMs(milliseconds) {
  if (milliseconds >= 9950) return `${Math.round(milliseconds / 1000)} s`;
  return milliseconds >= 995
    ? `${(milliseconds / 1000).toFixed(1)} s`
    : `${Math.round(milliseconds)} ms`;
}

export function formatRate(rate) {
  return rate >= 9.95 ? Math.round(rate).toLocaleString("en-US") : rate.toFixed(1);
}
