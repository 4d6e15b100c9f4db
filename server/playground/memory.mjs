// One sequence's recurrent state beside the KV cache of a Transformer of the same shape. `facts`
// are the engine's: stateBytes, and parentBytesPerToken.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** A size with three digits: 1.25 MiB. */
export function formatBytes(bytes) {
  let unit = 0;
  // Not 1024: "1,023.6 KiB" has one digit too many.
  while (bytes >= 999.5 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${Number(bytes.toPrecision(3))} ${UNITS[unit]}`;
}

export function formatCount(number) {
  return Math.round(number).toLocaleString("en-US");
}

export function knowsMemory(facts) {
  return facts !== null && facts.stateBytes > 0 && facts.parentBytesPerToken > 0;
}

/** The length from which on the state is the smaller one. */
export function breakEvenTokens(facts) {
  return Math.ceil(facts.stateBytes / facts.parentBytesPerToken);
}

/** How many times as much as the states the KV cache would take: 0.25, 3.1, 42. */
export function formatRatio(kvBytes, stateBytes) {
  const ratio = kvBytes / stateBytes;
  if (ratio >= 9.95) return `${formatCount(ratio)}\u00d7`;
  return `${ratio.toFixed(ratio >= 0.995 ? 1 : 2)}\u00d7`;
}

/** A round number that is at least `value`: 1, 2 or 5 times a power of ten. */
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((digit) => digit * power >= value) * power;
}

/** How far the picture reaches: where the lines cross is always in it, and so is the sequence. */
export function axisTokens(tokens, facts) {
  return roundUp(Math.max(3 * breakEvenTokens(facts), 1.2 * tokens));
}
