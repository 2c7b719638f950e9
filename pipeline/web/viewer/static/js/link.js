// The address of the page keeps the place and all that is chosen.

import { libraryOf, offOf, on, regions, result, state } from "./page.js";
import { centre, goTo, moveDivider, zoomOf } from "./layers.js";

let isRead = false;  // until then the address says what is wanted, not what is shown

export function writeLink() {
  if (!isRead) return;
  const [x, y] = centre(), [left, right] = state.sides;
  const place = { x: x.toFixed(1), y: y.toFixed(1), zoom: zoomOf().toPrecision(4), library: left.library };
  if (left.off.size) place.off = offOf(0);
  if (right.library) {
    place.right = right.library;
    if (right.off.size) place.rightOff = offOf(1);
    if (state.divider !== 0.5) place.divider = state.divider.toFixed(3);
  }
  if (state.leastP) place.p = state.leastP;
  if (state.area !== result.area) place.area = state.area;
  if (state.detection !== result.detection) place.detection = state.detection;
  if (state.region) place.region = state.region;
  if (!state.filled) place.fill = 0;
  if (state.base && state.corrections.generation) place.labels = "base";
  if (state.heat) place.heat = state.heat;
  if (state.quality) place.quality = state.onlyGood ? "good" : "show";
  if (state.nucleus !== null) place.nucleus = state.nucleus;
  history.replaceState(null, "", "#" + new URLSearchParams(place));
}
const numbers = (text) => new Set((text ?? "").split(",").filter(Boolean).map(Number).filter(Number.isInteger));
// Tells which nucleus is to be chosen, and whether the place is given, too.
export function readLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  const share = (name, otherwise) => Math.min(1, Math.max(0, Number(link.get(name) ?? otherwise) || 0));
  const known = libraryOf(link.get("library") ?? result.primary) ?? libraryOf(result.primary);
  state.sides = [
    { library: known.name, off: numbers(link.get("off")) },
    { library: libraryOf(link.get("right"))?.name ?? "", off: numbers(link.get("rightOff")) },
  ];
  state.leastP = share("p", 0);
  state.area = Math.max(0, Number(link.get("area") ?? result.area) || 0);
  state.detection = share("detection", result.detection);
  state.region = regions.some((one) => one.name === link.get("region")) ? link.get("region") : "";
  state.filled = link.get("fill") !== "0";
  state.base = link.get("labels") === "base";
  state.heat = ["density", "certainty"].find((one) => one === link.get("heat")) ?? "";
  const [x, y, zoom] = ["x", "y", "zoom"].map((name) => Number(link.get(name)));
  const placed = link.has("x") && [x, y, zoom].every(Number.isFinite) && zoom > 0;
  if (placed) goTo(x, y, zoom, true);
  moveDivider(share("divider", 0.5));
  const one = Number(link.get("nucleus"));
  const nucleus = link.has("nucleus") && Number.isInteger(one) && one >= 0 && one < result.nuclei ? one : null;
  isRead = true;
  return { nucleus, placed, quality: link.get("quality") ?? "" };
}
on("changed", writeLink);
on("moved", writeLink);
on("divided", writeLink);
