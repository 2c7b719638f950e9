// What every part of the page uses: its elements, the server, and what is shown.

import { $ } from "./dom.js";

export * from "./dom.js";

// Says something for some seconds; quietly, to those who hear the page.
let unsaid;
export function say(text, quietly = false) {
  clearTimeout(unsaid);
  $("said").textContent = text;
  $("said").className = quietly ? "quiet" : "";
  if (text) unsaid = setTimeout(() => say(""), 6000);
}

// A group of buttons of which one is chosen: arrow keys go through them, Tab passes by.
export function chooseRadio(group, value) {
  for (const button of group.children) {
    const checked = button.value === value;
    button.setAttribute("aria-checked", checked);
    button.tabIndex = checked ? 0 : -1;
  }
}
export function makeRadios(group, choose) {
  group.onclick = ({ target }) => { if (target.getAttribute("role") === "radio") choose(target.value); };
  group.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const all = [...group.children], next = all[(all.indexOf(document.activeElement) + by + all.length) % all.length];
    choose(next.value);
    next.focus();
  };
}

// Addresses are relative: a slide's page may be one of many.
async function fetched(address, options) {
  const answer = await fetch(address, options);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}
export const ask = (path, parameters = "") => fetched(`${path}?${parameters}`);
export const send = (path, body) =>
  fetched(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

// The parts of the page tell each other what has happened.
const bus = new EventTarget();
export const tell = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));
export const on = (name, listen) => bus.addEventListener(name, (event) => listen(event.detail));

// ---- the result

export const result = await ask("api/result");
export const [width, height] = result.size;
export const hasSlide = !result.note;
export const regions = result.regions ? await ask("api/regions") : [];
export const libraryOf = (name) => result.libraries.find((one) => one.name.toLowerCase() === String(name).toLowerCase());

// ---- what is shown; the address keeps all of it, so that a link leads back to it

export const state = {
  sides: [{ library: result.primary, off: new Set() }, { library: "", off: new Set() }],  // right of the divider, if any
  divider: 0.5,
  leastP: 0, area: result.area, detection: result.detection,
  region: "",
  onlyGood: false,
  filled: true,
  base: false,
  heat: "",
  quality: false,
  nucleus: null,
  corrections: result.corrections,
};
export const isSplit = () => state.sides[1].library !== "";
// Adapted labels have another address after each correction, so that no old tile is shown.
export const isAdapted = () => state.corrections.generation > 0 && !state.base;
const labelSet = () => isAdapted() ? `adapted.${state.corrections.generation}` : "base";
export const offOf = (side) => [...state.sides[side].off].sort((a, b) => a - b).join(",");
export function choice(more = {}, side = 0) {
  const asked = {
    library: state.sides[side].library, off: offOf(side), p: state.leastP, area: state.area, detection: state.detection,
    labels: labelSet(), ...more, v: result.version,
  };
  if (state.region) asked.region = state.region;
  if (state.onlyGood) asked.quality = "good";
  return new URLSearchParams(asked);
}

let waiting;
export function changed(afterMs = 120) {
  clearTimeout(waiting);
  waiting = setTimeout(() => tell("changed"), afterMs);
}
