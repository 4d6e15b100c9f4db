// The tokens of an answer with their probabilities, from either endpoint, fitted to its text.

const utf8 = new TextEncoder();

/** Of the chat endpoint: one object per token. */
export function readChatLogprobs(logprobs) {
  return (logprobs?.content ?? []).map((token) => ({
    ...readChatToken(token),
    alternatives: token.top_logprobs.map(readChatToken),
  }));
}

function readChatToken({ token, bytes, logprob }) {
  return { bytes: Uint8Array.from(bytes ?? utf8.encode(token)), logprob };
}

/** Of the completions endpoint: parallel lists, where part of a character is spelled in bytes. */
export function readCompletionLogprobs(logprobs) {
  return (logprobs?.tokens ?? []).map((token, i) => ({
    bytes: bytesOf(token),
    logprob: logprobs.token_logprobs[i],
    alternatives: Object.entries(logprobs.top_logprobs[i] ?? {})
      .map(([token, logprob]) => ({ bytes: bytesOf(token), logprob }))
      .sort((a, b) => b.logprob - a.logprob),
  }));
}

function bytesOf(token) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(token)) return utf8.encode(token);
  return Uint8Array.from(token.match(/[0-9a-f]{2}(?=\\|$)/g), (hex) => parseInt(hex, 16));
}

/**
 * Cuts the text of an answer where its tokens end. The text is right whatever happens: a stop may
 * cut a token short, and text that might have been a stop comes later than its tokens.
 */
export class TokenCutter {
  #utf8 = new TextDecoder();
  #text = "";
  #waiting = [];

  /** The pieces that are complete, as [text, token]; a piece that fits no token has null. */
  push(text, tokens) {
    this.#text += text;
    for (const token of tokens) {
      const part = this.#utf8.decode(token.bytes, { stream: true });
      // Part of a character: the token that completes it stands for all of it.
      if (part) this.#waiting.push([part, token]);
    }
    const pieces = [];
    while (this.#text && this.#waiting.length) {
      this.#skipUnwritten();
      const [part, token] = this.#waiting[0];
      if (!this.#text.startsWith(part)) break;
      pieces.push([part, token]);
      this.#text = this.#text.slice(part.length);
      this.#waiting.shift();
    }
    const isWaitingForText = this.#waiting[0]?.[0].startsWith(this.#text);
    if (this.#text && this.#waiting.length && !isWaitingForText) {
      pieces.push([this.#text, null]);
      this.#text = "";
      this.#waiting = [];
    }
    return pieces;
  }

  /** Special tokens have a probability, but the text leaves them out. */
  #skipUnwritten() {
    const fits = ([part]) => this.#text.startsWith(part) || part.startsWith(this.#text);
    const next = this.#waiting.findIndex(fits);
    if (next > 0) this.#waiting.splice(0, next);
  }

  /** What is left when the answer is over. */
  finish() {
    if (!this.#text) return [];
    const piece = [this.#text, this.#waiting[0]?.[1] ?? null];
    this.#text = "";
    return [piece];
  }
}

/** How surprising a token was, in five degrees: 0 was expected, 4 was all but ruled out. */
export function surprise(logprob) {
  return [0.5, 0.2, 0.05, 0.01].filter((probability) => Math.exp(logprob) < probability).length;
}

/** A probability as a reader wants it: 97%, 0.4%. */
export function formatProbability(logprob) {
  const percent = 100 * Math.exp(logprob);
  if (percent >= 9.95) return `${Math.round(percent)}%`;
  return percent >= 0.05 ? `${percent.toFixed(1)}%` : "<0.1%";
}

/** The tokens that might have stood here, the likeliest first, each with whether it does. */
export function rankTokens(token) {
  const isSame = ({ bytes }) => String(bytes) === String(token.bytes);
  const others = token.alternatives.filter((other) => !isSame(other));
  return [token, ...others]
    .sort((a, b) => b.logprob - a.logprob)
    .map(({ bytes, logprob }) => ({ name: spell(bytes), logprob, isChosen: isSame({ bytes }) }));
}

/** A token for the eye: white space is made visible, and part of a character is shown as bytes. */
export function spell(bytes) {
  const text = new TextDecoder().decode(bytes);
  if (text.includes("\ufffd")) {
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  }
  return text.replace(/ /g, "\u00b7").replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5");
}
