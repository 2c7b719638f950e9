// Heat maps, places of poor quality, and regions of interest.

import { $, ask, changed, choice, element, hasSlide, on, regions, say, state, svg } from "./page.js";
import { drawHeat, drawQuality, fit, toScreen, viewer } from "./layers.js";
import { drawings, tellTexts, texts } from "./tools.js";
import { writeLink } from "./link.js";

// ---- heat map

const HEAT = ["", "density", "certainty"];
async function showHeat() {
  $("heat").value = state.heat;
  $("heat-scale").hidden = !state.heat;
  if (!state.heat) return;
  const asked = String(choice({ kind: state.heat }));
  const { scale: [low, high] } = await ask("api/heat", asked);
  if (!state.heat || asked !== String(choice({ kind: state.heat }))) return;
  const isDensity = state.heat === "density";
  $("heat-low").textContent = isDensity ? "0" : `≤ ${low}`;
  $("heat-high").textContent = isDensity ? `≥ ${Math.round(high).toLocaleString("en")} per mm²` : `${high}`;
  $("heat-of").textContent = `${isDensity ? "Nuclei of the ticked labels" : "Mean probability of the label"}, ${state.sides[0].library}`;
}
export function setHeat(kind) {
  state.heat = kind;
  drawHeat();
  showHeat();
  writeLink();
}
export const nextHeat = () => setHeat(HEAT[(HEAT.indexOf(state.heat) + 1) % HEAT.length]);
on("changed", showHeat);
on("link", showHeat);
$("heat").onchange = (event) => setHeat(event.target.value);

// ---- quality of the tissue: measured when first asked for

let quality = null;
function showQuality() {
  $("quality").checked = state.quality;
  $("only-good").checked = state.onlyGood;
  $("only-good-toggle").hidden = !quality?.nuclei;
}
function sayQuality(...lines) {
  $("quality-said").replaceChildren(...lines);
  say(lines.map((line) => line.textContent).join("; "));
}
function described({ words, share, nuclei, colour: [r, g, b], hatching }) {
  const percent = share && share < 0.01 ? "< 1" : Math.round(100 * share);
  const swatch = element("i", { className: "hatched" });
  swatch.style.setProperty("--mark", `rgb(${r} ${g} ${b})`);
  swatch.style.setProperty("--turn", `${135 * hatching}deg`);
  return element("li", {}, swatch, `${percent} % of the tissue ${words}, ${nuclei.toLocaleString("en")} nuclei`);
}
export async function setQuality(on) {
  if (on && !quality) {
    sayQuality(element("li", { textContent: "Measuring the slide …" }));
    try { quality = await ask("api/quality"); } catch (error) {
      sayQuality(element("li", { textContent: error.message }));
      $("quality").checked = false;
      return;
    }
    sayQuality(...quality.causes.map(described));
  }
  state.quality = on;
  if (!on) setOnlyGood(false);
  showQuality();
  drawQuality();
  writeLink();
}
function setOnlyGood(yes) {
  if (yes === state.onlyGood) return;
  state.onlyGood = yes;
  changed();
}
on("link", async ({ quality: wanted }) => {
  if (!wanted === !state.quality && (wanted === "good") === state.onlyGood) return;
  await setQuality(Boolean(wanted));
  if (wanted === "good" && quality) { setOnlyGood(true); showQuality(); }
});
$("quality").disabled = !hasSlide;
$("quality").onchange = (event) => setQuality(event.target.checked);
$("only-good").onchange = (event) => setOnlyGood(event.target.checked);

// ---- regions of interest

const BUTTONS_PX = [60, 190];  // that the buttons of zoom take
const shapes = regions.map((one) => {
  const d = one.rings.map((ring) => `M${ring.map((place) => place.join(" ")).join("L")}Z`).join("");
  return svg("g", { class: "region" }, svg("path", { d }), svg("path", { d }));
});
const names = regions.map((one) => svg("text", { class: "region-name" }, one.name));
drawings.prepend(...shapes);
texts.prepend(...names);
// Above the middle of the region's part that is in sight, and in sight whole: beside the buttons, too.
function placeName(name, [x0, y0, x1, y1]) {
  const start = toScreen(x0, y0), stop = toScreen(x1, y1), view = viewer.viewport.getContainerSize();
  const y = start.y < view.y && stop.y > 0 ? Math.max(start.y, 22) : start.y;
  const half = name.getComputedTextLength() / 2 + 6, left = y < BUTTONS_PX[1] ? BUTTONS_PX[0] : 0;
  const middle = (Math.max(start.x, 0) + Math.min(stop.x, view.x)) / 2;
  const x = start.x < view.x && stop.x > 0 ? Math.max(left + half, Math.min(middle, view.x - half)) : middle;
  name.setAttribute("x", x);
  name.setAttribute("y", y);
}
tellTexts.push(() => { for (const [k, { box }] of regions.entries()) placeName(names[k], box); });
function showRegions() {
  $("region").value = state.region;
  for (const [k, one] of regions.entries()) shapes[k].classList.toggle("chosen", one.name === state.region);
  const one = regions.find(({ name }) => name === state.region);
  $("region-said").textContent = one ? `${one.class && one.class !== one.name ? `${one.class}, ` : ""}${one.nuclei.toLocaleString("en")} nuclei, ${one.mm2.toPrecision(3)} mm²` : "";
}
export function setRegion(name) {
  state.region = name;
  showRegions();
  const one = regions.find((each) => each.name === name);
  if (one) fit(one.box);
  changed();
}
export function nextRegion() {
  if (!regions.length) return;
  const all = ["", ...regions.map(({ name }) => name)];
  setRegion(all[(all.indexOf(state.region) + 1) % all.length]);
}
$("region-choice").hidden = !regions.length;
$("region").append(...regions.map(({ name }) => element("option", { textContent: name, value: name })));
$("region").onchange = (event) => setRegion(event.target.value);
on("link", showRegions);
