// The panel's upper half: label systems, their labels with counts, the filters.

import { $, ask, changed, choice, element, height, isAdapted, isSplit, libraryOf, makeRadios, chooseRadio, number, on, result, state, swatch, tell, width, words } from "./page.js";
import { inSight } from "./layers.js";

const LISTS = ["labels", "right-labels"];
const mm = (px) => (px * result.mpp / 1000).toPrecision(3);
const size = `${mm(width)} × ${mm(height)} mm`;

export function showControls() {
  chooseRadio($("libraries"), state.sides[0].library);
  $("compare").value = state.sides[1].library;
  for (const side of [0, 1]) showLabels(side);
  $("filled").checked = state.filled;
  showFilters();
}
function showLabels(side) {
  const list = $(LISTS[side]), { library: name, off } = state.sides[side];
  $("right").hidden = !isSplit();
  list.replaceChildren(...(libraryOf(name)?.labels ?? []).flatMap((label, i) => {
    if (!label.given && !label.count) return [];
    const box = element("input", { type: "checkbox", checked: !off.has(i), onchange: (event) => {
      if (event.target.checked) off.delete(i); else off.add(i);
      changed();
    } });
    const cell = (className, text = "") => {
      const made = element("span", { className, textContent: text });
      made.dataset.label = i;
      return made;
    };
    const row = element("label", {}, box, swatch(label.colour), element("span", { className: "name", textContent: words(label.name) }),
      cell("sight"), cell("before"), cell("count", number(label.count)));
    if (!label.count) row.classList.add("never");
    return [element("li", {}, row)];
  }));
}
export function showFilters() {
  $("least-p").value = state.leastP;
  $("least-p-value").textContent = state.leastP.toFixed(2);
  $("least-area").max = Math.max(40, result.area);
  $("least-area").value = state.area;
  $("least-area-value").textContent = `${state.area} µm²`;
  $("least-detection").value = state.detection;
  $("least-detection-value").textContent = state.detection.toFixed(2);
}
const sum = (counts, side) => counts.reduce((all, n, label) => state.sides[side].off.has(label) ? all : all + n, 0);
const fill = (side, name, text) => {
  for (const shown of $(LISTS[side]).getElementsByClassName(name)) shown.textContent = text(shown.dataset.label);
};
// The legend counts the nuclei that the filters leave; the counts of the run stand beside those after corrections.
async function fillCounts(side) {
  const asked = String(choice({}, side)), isOld = () => asked !== String(choice({}, side));
  const counts = await ask("api/counts", asked);
  if (isOld()) return;
  fill(side, "count", (label) => number(counts[label]));
  const base = isAdapted() ? await ask("api/counts", choice({ labels: "base" }, side)) : null;
  if (isOld()) return;
  fill(side, "before", (label) => base ? `${number(base[label])} →` : "");
  if (side) return;
  const seen = sum(counts, side);
  $("facts").textContent = `${seen < result.nuclei ? `${number(seen)} of ` : ""}${number(result.nuclei)} nuclei · ${size}`;
}
async function fillSight(side) {
  const [x0, y0, x1, y1] = inSight();
  const asked = () => String(choice({ box: inSight().map((edge) => edge.toFixed(1)).join(",") }, side));
  const now = asked(), counts = await ask("api/counts", now);
  if (now !== asked()) return;
  fill(side, "sight", (label) => number(counts[label]));
  if (side) return;
  const mm2 = (x1 - x0) * (y1 - y0) * (result.mpp / 1000) ** 2, seen = sum(counts, side);
  $("sight").textContent = mm2 > 0 ? `${number(seen)} in sight on ${mm2.toPrecision(3)} mm²: ${number(Math.round(seen / mm2))} per mm²` : "";
}
export const sides = () => isSplit() ? [0, 1] : [0];
on("changed", () => { for (const side of sides()) { fillCounts(side); fillSight(side); } });
on("moved", () => { for (const side of sides()) fillSight(side); });

export function chooseLibrary(name) {
  if (name === state.sides[0].library) return;
  state.sides[0] = { library: name, off: new Set() };
  showControls();
  tell("library");
  changed();
}
// Which library is right of the divider; "" for no divider.
export function compareWith(name) {
  if (name === state.sides[1].library) return;
  state.sides[1] = { library: name, off: new Set() };
  showControls();
  changed(0);
}
function switchAll(on) {
  state.sides[0].off = new Set(on ? [] : libraryOf(state.sides[0].library).labels.keys());
  showControls();
  changed();
}

$("libraries").replaceChildren(...result.libraries.map((one) => {
  const button = element("button", { textContent: one.name, value: one.name });
  button.setAttribute("role", "radio");
  return button;
}));
makeRadios($("libraries"), chooseLibrary);
$("compare").append(...result.libraries.map((one) => element("option", { textContent: one.name, value: one.name })));
$("compare").onchange = (event) => compareWith(event.target.value);
$("all").onclick = () => switchAll(true);
$("none").onclick = () => switchAll(false);
for (const [id, name] of [["least-p", "leastP"], ["least-area", "area"], ["least-detection", "detection"]]) {
  $(id).oninput = (event) => {
    state[name] = Number(event.target.value);
    showFilters();
    changed();
  };
}
