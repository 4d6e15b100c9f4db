// Changes to the page at the pace at which it is painted.

/**
 * Calls `show` before the next paint, however often it was asked for until then. A small model
 * writes thousands of tokens a second: laid out one by one, they would leave no time for anything
 * else, the Stop button included.
 */
export class Frames {
  #show;
  #frame = 0;

  constructor(show) {
    this.#show = show;
  }

  request() {
    this.#frame ||= requestAnimationFrame(() => this.flush());
  }

  /** Show what is left at once. A page that nobody sees is not painted. */
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#show();
  }
}
