// The parameters of a request: which there are, and how their fields are read.

/** An empty field is not sent: then the server's default holds. */
export const PARAMETERS = [
  {
    name: "temperature",
    kind: "float",
    min: 0,
    max: 2,
    step: 0.1,
    hint: "0 always takes the likeliest token",
  },
  {
    name: "top_p",
    kind: "float",
    min: 0,
    max: 1,
    step: 0.05,
    hint: "the likeliest tokens that together have this probability",
  },
  {
    name: "top_k",
    kind: "int",
    min: -1,
    step: 1,
    hint: "this many likeliest tokens; 0 means all",
  },
  {
    name: "min_p",
    kind: "float",
    min: 0,
    max: 1,
    step: 0.01,
    hint: "tokens at least this likely, relative to the likeliest",
  },
  {
    name: "max_tokens",
    kind: "int",
    min: 1,
    step: 1,
    initial: "256",
    hint: "longest answer, in tokens",
  },
  {
    name: "frequency_penalty",
    kind: "float",
    min: -2,
    max: 2,
    step: 0.1,
    hint: "per earlier occurrence in the answer",
  },
  {
    name: "presence_penalty",
    kind: "float",
    min: -2,
    max: 2,
    step: 0.1,
    hint: "for any earlier occurrence in the answer",
  },
  {
    name: "repetition_penalty",
    kind: "float",
    min: 0,
    max: 100,
    step: 0.05,
    hint: "for tokens of the prompt or the answer; 1 is none",
  },
  {
    name: "seed",
    kind: "int",
    step: 1,
    hint: "the same seed gives the same answer",
  },
];

/** A field that cannot be sent as it is. */
export class ParameterError extends Error {
  constructor(name, message) {
    super(message);
    this.param = name;
  }
}

/**
 * The fields of a request from what was typed.
 *
 * Only the form of a number is checked here; which numbers make sense is the server's to say.
 * Throws ParameterError.
 */
export function readParameters(typed) {
  const fields = {};
  for (const { name, kind } of PARAMETERS) {
    const text = (typed[name] ?? "").trim();
    if (text) fields[name] = readNumber(name, kind, text);
  }
  const stops = (typed.stop ?? "").split("\n").filter((line) => line !== "");
  if (stops.length) fields.stop = stops.map(unescapeStop);
  return fields;
}

function readNumber(name, kind, text) {
  const number = Number(text);
  if (!Number.isFinite(number)) throw new ParameterError(name, `${name} is not a number.`);
  if (kind === "int" && !Number.isSafeInteger(number)) {
    throw new ParameterError(name, `${name} must be a whole number below 2^53.`);
  }
  return number;
}

/** A stop string has a line of its own, so a line break in one is typed as \n. */
function unescapeStop(line) {
  const meaning = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };
  return line.replace(/\\[nt\\]/g, (escape) => meaning[escape]);
}
