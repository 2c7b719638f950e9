// Elements of a page, and texts as people read them.

export const $ = (id) => document.getElementById(id);
export const number = (n) => n.toLocaleString("en");
export const colour = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
export const words = (label) => label.replaceAll("_", " ");
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
export function swatch(rgb) {
  const made = element("span", { className: "swatch" });
  made.style.background = colour(rgb);
  return made;
}
