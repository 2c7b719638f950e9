// Keys, and the list of them.

import { $, element, isSplit, libraryOf, result, state, tell, changed } from "./page.js";
import { getNucleiOpacity, moveDivider, setNucleiOpacity, viewer } from "./layers.js";
import { chooseLibrary, compareWith } from "./legend.js";
import { correctable, forget, LETTERS, NONE } from "./card.js";
import { correct, showBase, suggestNext, undo } from "./corrections.js";
import { step } from "./gallery.js";
import { getTool, pickMiddle, stopTools, takeTool } from "./tools.js";
import { nextHeat, nextRegion, setQuality } from "./maps.js";
import { writeLink } from "./link.js";

const PAN_PX = 120;
let lastCompared = "";

export function fill(filled) {
  state.filled = $("filled").checked = filled;
  changed(0);
}
function pan(x, y) {
  viewer.viewport.panBy(viewer.viewport.deltaPointsFromPixels(new OpenSeadragon.Point(x * PAN_PX, y * PAN_PX)));
  viewer.viewport.applyConstraints();
}
function compare(by) {
  const names = result.libraries.map((one) => one.name), left = names.indexOf(state.sides[0].library);
  const next = (from) => names[(names.indexOf(from) + 1) % names.length];
  if (by === "off or on" && isSplit()) { lastCompared = state.sides[1].library; compareWith(""); return; }
  let right = by === "next" && isSplit() ? next(state.sides[1].library) : lastCompared || next(names[left]);
  if (right === names[left]) right = next(right);
  if (right !== names[left]) compareWith(right);
}
function moveBy(by) {
  if (!isSplit()) return;
  moveDivider(state.divider + by);
  tell("divided");
}
function visit(address) { if (address) location.href = `${address}#library=${state.sides[0].library}`; }
export const visitPrevious = () => visit(result.place?.previous);
export const visitNext = () => visit(result.place?.next);

const slides = result.place ? [["Slides",
  ["[", "the previous slide", visitPrevious], ["]", "the next slide", visitNext], ["l", "the list of slides", () => visit(result.place.all)]]] : [];
const sections = [
  ["Place",
    ["ArrowLeft", "move the slide", () => pan(-1, 0)], ["ArrowRight", "", () => pan(1, 0)], ["ArrowUp", "", () => pan(0, -1)], ["ArrowDown", "", () => pan(0, 1)],
    ["+", "zoom in", () => viewer.viewport.zoomBy(1.6)], ["=", "", () => viewer.viewport.zoomBy(1.6)],
    ["-", "zoom out", () => viewer.viewport.zoomBy(1 / 1.6)], ["0", "the whole slide", () => viewer.viewport.goHome()]],
  ["What is shown",
    ["1", "label system", null],
    ["c", "compare with another label system, or not", () => compare("off or on")], ["v", "the next one to compare with", () => compare("next")],
    [",", "the divider to the left", () => moveBy(-0.05)], [".", "and to the right", () => moveBy(0.05)],
    ["f", "fill the outlines or not", () => fill(!state.filled)], ["h", "hide the nuclei or not", () => setNucleiOpacity(getNucleiOpacity() > 0 ? 0 : $("opacity").value / 100)],
    ["t", "heat map: density, certainty, none", nextHeat], ["o", "places of poor quality", () => setQuality(!state.quality)],
    ["r", "the next region", nextRegion]],
  ["Nuclei",
    ["Enter", "the nucleus in the middle", pickMiddle], ["n", "the next uncertain nucleus", () => step(1)], ["p", "the previous one", () => step(-1)],
    ["m", "measure a distance", () => { if (getTool() === "measure") stopTools(); else takeTool("measure"); }],
    ["Escape", "close, put the tool away", () => { stopTools(); forget(); writeLink(); }]],
  ["Corrections",
    ["Shift+A", "give the label with that letter; B, C, …", null], ["Shift+X", "not a nucleus", null],
    ["s", "suggest the next nucleus", suggestNext], ["d", "draw round several nuclei", () => takeTool(getTool() === "draw" ? "" : "draw")],
    ["z", "undo", undo], ["b", "labels as in the run, or corrected", () => showBase(!state.base)]],
  ...slides,
];
const NAMES = { 1: "1–9", ArrowLeft: "← → ↑ ↓", Escape: "Esc", "-": "−" };
const actions = new Map(sections.flatMap(([, ...keys]) => keys).map(([key, , run]) => [key, run]));
$("keys-list").replaceChildren(...sections.map(([title, ...keys]) => element("div", {}, element("h3", { textContent: title }),
  element("dl", {}, ...keys.filter(([, what]) => what).flatMap(([key, what]) =>
    [element("dt", {}, element("kbd", { textContent: NAMES[key] ?? key })), element("dd", { textContent: what })])))));
export function showKeys() { $("keys").showModal(); }

const takesText = (target) => target.tagName === "SELECT" || target.tagName === "INPUT" && target.type !== "checkbox";
addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  if (takesText(target) && key !== "Escape") return;
  if (event.shiftKey && /^[a-z]$/i.test(key)) {
    const one = correctable(libraryOf(state.sides[0].library)).find(([i]) => LETTERS[i] === key.toUpperCase());
    if (one) correct(state.sides[0].library, one[1].name); else if (key.toUpperCase() === "X") correct("", NONE);
    return;
  }
  const isButton = target.closest("button, a, input, summary") !== null;
  if (key === "Enter" && isButton) return;  // it is pressed
  if (key.startsWith("Arrow")) {
    if (target.closest("aside")) return;  // the panel scrolls
    event.preventDefault();
  }
  if (key === "?") showKeys();
  else if (key >= "1" && key <= String(Math.min(9, result.libraries.length))) chooseLibrary(result.libraries[Number(key) - 1].name);
  else actions.get(key)?.();
});
for (const id of ["show-keys", "help"]) $(id).onclick = showKeys;
