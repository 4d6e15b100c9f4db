// Elements, made without ever parsing text as HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with some properties and children; strings become text. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function makeSvg(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  setAttributes(element, attributes);
  element.textContent = text;
  return element;
}

export function setAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

/** A button that looks like a word. */
export function makeAction(label, act) {
  const button = make("button", { type: "button", className: "plain" }, label);
  button.addEventListener("click", act);
  return button;
}
