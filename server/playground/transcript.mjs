// The place where the conversation stands, and what lies over it: how it scrolls, and the sheet
// with a request for a shell.

import { byId } from "./dom.mjs";

/** Closer to the end than this, the transcript follows what is written. */
const FOLLOW_PIXELS = 80;

export function scrollToEnd() {
  byId("transcript").scrollTop = byId("transcript").scrollHeight;
}

/** Make a change to the transcript. Who reads its end goes on reading its end. */
export function keepAtEnd(change) {
  const { scrollTop, scrollHeight, clientHeight } = byId("transcript");
  const isAtEnd = scrollHeight - scrollTop - clientHeight < FOLLOW_PIXELS;
  change();
  if (isAtEnd) scrollToEnd();
}

/** Tell those who cannot see it. */
export function announce(text) {
  byId("announcement").textContent = text;
}

/** Copy a command, and show it: only a page from this machine or over TLS may copy. */
export async function showCommand(command) {
  const copying = navigator.clipboard?.writeText(command) ?? Promise.reject();
  const outcome = await copying.then(
    () => "Copied: the same request, as curl",
    () => "The same request, as curl",
  );
  byId("curl-title").textContent = outcome;
  byId("curl").querySelector("pre").textContent = command;
  byId("curl").showModal();
}
