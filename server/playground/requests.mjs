// The two generation endpoints: what is asked, and how the answer comes back.

import { EventDecoder } from "./events.mjs";
import { readChatLogprobs, readCompletionLogprobs } from "./logprobs.mjs";

export const NUM_ALTERNATIVES = 5;

/** An answer that the server refused, or ended with an error. Status 0: there was no answer. */
export class ServerError extends Error {
  constructor(status, { message, code = null, param = null }, retryAfter = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

/** A request that continues a text. */
export function completionRequest(model, prompt, parameters, wantsLogprobs) {
  const logprobs = wantsLogprobs ? { logprobs: NUM_ALTERNATIVES } : {};
  return {
    path: "/v1/completions",
    body: { model, prompt, ...parameters, ...logprobs, ...STREAMING },
  };
}

/** A request that answers a conversation. An empty system message is none. */
export function chatRequest(model, system, messages, parameters, wantsLogprobs) {
  const first = system ? [{ role: "system", content: system }] : [];
  const logprobs = wantsLogprobs ? { logprobs: true, top_logprobs: NUM_ALTERNATIVES } : {};
  const body = {
    model,
    messages: [...first, ...messages],
    ...parameters,
    ...logprobs,
    ...STREAMING,
  };
  return { path: "/v1/chat/completions", body };
}

const STREAMING = {
  stream: true,
  stream_options: { include_usage: true, continuous_usage_stats: true },
};

/** The same request for a shell. The key stays out of it: the variable KEY stands for it. */
export function curlCommand(origin, { path, body }, needsKey) {
  const { stream_options: _, ...shown } = body;
  const quoted = JSON.stringify(shown, null, 2).replaceAll("'", "'\\''");
  const key = needsKey ? ' \\\n  -H "Authorization: Bearer $KEY"' : "";
  return `curl -N ${origin}${path} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${quoted}'`;
}

export function keyHeaders(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/**
 * Yields the parts of a streamed answer as they arrive: { text, tokens, usage, finishReason }.
 *
 * Aborting `signal` closes the connection, which frees the sequence's slot, and throws AbortError.
 * Any other failure is a ServerError.
 */
export async function* streamAnswer({ path, body }, { key, signal, fetch = globalThis.fetch }) {
  const headers = { "Content-Type": "application/json", ...keyHeaders(key) };
  const options = { method: "POST", headers, body: JSON.stringify(body), signal };
  const response = await reach(fetch(path, options));
  if (!response.ok) throw await refusalOf(response);
  for await (const data of readEvents(response.body.getReader())) {
    if (data === "[DONE]") return;
    yield readChunk(JSON.parse(data));
  }
  throw new ServerError(0, LOST);
}

async function* readEvents(reader) {
  const decoder = new EventDecoder();
  try {
    for (;;) {
      const { done, value } = await reach(reader.read());
      if (done) return;
      yield* decoder.feed(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const LOST = { message: "The connection to the server was lost.", code: "connection_lost" };

async function reach(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, LOST);
  }
}

/** The error that a response with an error status stands for. */
export async function refusalOf(response) {
  const fallback = { message: `The server answered with status ${response.status}.` };
  const body = await response.json().catch(() => null);
  const seconds = Number(response.headers.get("Retry-After"));
  return new ServerError(response.status, body?.error ?? fallback, seconds || null);
}

function readChunk(chunk) {
  if (chunk.error) throw new ServerError(200, chunk.error);
  const choice = chunk.choices[0];
  const isChat = choice !== undefined && "delta" in choice;
  const readLogprobs = isChat ? readChatLogprobs : readCompletionLogprobs;
  return {
    text: (isChat ? choice.delta.content : choice?.text) ?? "",
    tokens: readLogprobs(choice?.logprobs),
    usage: chunk.usage ?? null,
    finishReason: choice?.finish_reason ?? null,
  };
}

/** What the reader can do about an error, in a sentence. */
export function adviceFor(error) {
  if (error.status === 401) return "Type the key into the field API key, then try again.";
  switch (error.code) {
    case "connection_lost":
      return "See whether the server still runs, then try again.";
    case "engine_dead":
      return "The engine is loading or starting again. Try again in a moment.";
    case "server_draining":
      return "The server is stopping. Try again when it is back.";
    case "engine_overloaded":
      return `Everyone is asking at once. Try again in ${error.retryAfter ?? 1} s.`;
    case "context_length_exceeded":
      return "Begin a new conversation, or lower max_tokens.";
    case "numerical_error":
    case "request_failed":
      return "Only this request failed. Try again.";
    default:
      return error.param ? `Change ${error.param}, then try again.` : "Try again.";
  }
}
