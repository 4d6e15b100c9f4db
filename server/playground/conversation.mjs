// What was said: a list of exchanges, each a prompt and what the model made of it.

/** One prompt and its answer. In completion mode both are one text. */
export class Exchange {
  answer = "";
  /** The part of the answer that stays when it is written again. */
  kept = "";
  /** The last request, for curl. */
  request = null;

  constructor(mode, prompt) {
    this.mode = mode;
    this.prompt = prompt;
  }

  get text() {
    return this.prompt + this.answer;
  }
}

/**
 * The messages that ask for the answer of the last exchange.
 *
 * An exchange that was never answered is left out: the model would see two questions in a row.
 */
export function messagesFor(exchanges) {
  const last = exchanges.at(-1);
  const answered = exchanges.slice(0, -1).filter((exchange) => exchange.answer);
  const messages = answered.flatMap(({ prompt, answer }) => [
    { role: "user", content: prompt },
    { role: "assistant", content: answer },
  ]);
  return [...messages, { role: "user", content: last.prompt }];
}
