// The fields beside the conversation: parameters, model, key, theme.

import { byId, make } from "./dom.mjs";
import { PARAMETERS, readParameters } from "./parameters.mjs";

const THEMES = ["auto", "light", "dark"];

/** Draw the parameters' fields, and the buttons that change only how the page looks. */
export function prepareSettings() {
  for (const { name, min, max, step, initial = "", hint } of PARAMETERS) {
    const input = make("input", {
      id: name,
      type: "number",
      value: initial,
      placeholder: "default",
      title: hint,
    });
    Object.assign(input, { min: min ?? "", max: max ?? "", step });
    input.inputMode = step < 1 ? "decimal" : "numeric";
    byId("parameters").append(make("label", { htmlFor: name, title: hint }, name), input);
  }
  byId("instruments").addEventListener("input", ({ target }) =>
    target.removeAttribute("aria-invalid"),
  );
  byId("theme").addEventListener("click", changeTheme);
  byId("instruments-button").addEventListener("click", () => {
    openInstruments(!byId("instruments").classList.contains("open"));
  });
}

/** On a narrow page the instruments lie over the conversation. */
export function openInstruments(isOpen) {
  byId("instruments").classList.toggle("open", isOpen);
  const button = byId("instruments-button");
  button.setAttribute("aria-expanded", String(isOpen));
  button.textContent = isOpen ? "Back" : "Instruments";
}

/** The fields of a request. Throws ParameterError. */
export function typedParameters() {
  const ids = [...PARAMETERS.map(({ name }) => name), "stop"];
  // A number field hides what it cannot read: that must not pass for an empty one.
  const typed = (field) => (field.validity.badInput ? "?" : field.value);
  return readParameters(Object.fromEntries(ids.map((id) => [id, typed(byId(id))])));
}

/** Take the reader to the field that an error is about. Returns whether there is one. */
export function pointAt(id) {
  const field = byId(id);
  if (!field || !byId("instruments").contains(field)) return false;
  openInstruments(true);
  field.setAttribute("aria-invalid", "true");
  field.focus();
  return true;
}

/** Offer these models, keeping the choice where it still exists. */
export function showModels(names) {
  const select = byId("model");
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
}

function changeTheme() {
  const root = document.documentElement;
  const now = THEMES.indexOf(root.dataset.theme ?? "auto");
  const next = THEMES[(now + 1) % THEMES.length];
  root.dataset.theme = next;
  const button = byId("theme");
  button.textContent = `theme ${next}`;
  button.setAttribute("aria-label", `Theme: ${next === "auto" ? "as the system" : next}`);
}
