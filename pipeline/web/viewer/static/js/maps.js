// Heat maps, places out of focus, and regions of interest.

import { $, ask, changed, choice, element, hasSlide, on, regions, say, state, svg } from "./page.js";
import { drawFocus, drawHeat, fit } from "./layers.js";
import { drawings, placeText, tellTexts, texts } from "./tools.js";
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

// ---- focus: measured when first asked for

let focus = null;
function showFocus() {
  $("focus").checked = state.focus;
  $("in-focus").checked = state.inFocus;
  $("in-focus-toggle").hidden = !focus?.nuclei;
}
export async function setFocus(on) {
  if (on && !focus) {
    $("focus-said").textContent = "Measuring the slide …";
    try { focus = await ask("api/focus"); } catch (error) {
      $("focus-said").textContent = error.message;
      $("focus").checked = false;
      return;
    }
    const share = 100 * focus.share;
    $("focus-said").textContent = `${share && share < 1 ? "< 1" : Math.round(share)} % of the tissue is out of focus, and ${focus.nuclei.toLocaleString("en")} nuclei.`;
    say($("focus-said").textContent);
  }
  state.focus = on;
  if (!on) setInFocus(false);
  showFocus();
  drawFocus();
  writeLink();
}
function setInFocus(yes) {
  if (yes === state.inFocus) return;
  state.inFocus = yes;
  changed();
}
on("link", async ({ focus: wanted }) => {
  if (!wanted === !state.focus && (wanted === "in") === state.inFocus) return;
  await setFocus(Boolean(wanted));
  if (wanted === "in" && focus) { setInFocus(true); showFocus(); }
});
$("focus").disabled = !hasSlide;
$("focus").onchange = (event) => setFocus(event.target.checked);
$("in-focus").onchange = (event) => setInFocus(event.target.checked);

// ---- regions of interest

const shapes = regions.map((one) => svg("path", {
  class: "region", d: one.rings.map((ring) => `M${ring.map((place) => place.join(" ")).join("L")}Z`).join(""),
}));
const names = regions.map((one) => svg("text", { class: "region-name" }, one.name));
drawings.prepend(...shapes);
texts.prepend(...names);
tellTexts.push(() => { for (const [k, { box }] of regions.entries()) placeText(names[k], [box[0], box[1]]); });
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
