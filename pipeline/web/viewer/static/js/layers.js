// OpenSeadragon shows layers of tiles, all drawn by the server: the slide, a heat map, places of poor quality, the nuclei.
// Frames: x and y are pixels of level 0 (as in the store); OpenSeadragon's own frame has the slide's width as 1.

import { $, choice, element, hasSlide, height, isSplit, on, result, state, tell, width } from "./page.js";

export const viewer = OpenSeadragon({
  element: $("slide"),
  drawer: "canvas",  // the others need a graphics card
  showNavigationControl: false,
  showNavigator: true,
  navigatorPosition: "TOP_RIGHT",
  preserveViewport: true,  // the first layer that arrives shall not undo a link's place
  navigatorSizeRatio: 0.16,
  navigatorAutoFade: false,
  navigatorBackground: "#fff",
  navigatorOpacity: 1,
  navigatorBorderColor: "#b9bec6",
  maxZoomPixelRatio: 2,
  minZoomImageRatio: 0.7,
  visibilityRatio: 0.4,
  zoomPerScroll: 1.3,
  animationTime: 0.6,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
});
window.viewer = viewer;
viewer.canvas.setAttribute("role", "application");
viewer.canvas.setAttribute("aria-label", "The slide: arrow keys move it, + and − zoom, Enter chooses the nucleus in the middle");

// ---- the place

export const zoomOf = () => viewer.viewport.getZoom(true) * viewer.viewport.getContainerSize().x / width;  // screen px per px
export function centre() {
  const { x, y } = viewer.viewport.getCenter(true);
  return [x * width, y * width];
}
export function goTo(x, y, screenPxPerPx, immediately = false) {
  viewer.viewport.panTo(new OpenSeadragon.Point(x / width, y / width), immediately);
  viewer.viewport.zoomTo(screenPxPerPx * width / viewer.viewport.getContainerSize().x, undefined, immediately);
}
export function fit([x0, y0, x1, y1]) {
  const margin = 0.08 * Math.max(x1 - x0, y1 - y0);
  viewer.viewport.fitBoundsWithConstraints(new OpenSeadragon.Rect(
    (x0 - margin) / width, (y0 - margin) / width, (x1 - x0 + 2 * margin) / width, (y1 - y0 + 2 * margin) / width));
}
export const toScreen = (x, y) => viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(x / width, y / width), true);
export function toSlide(x, y) {
  const point = viewer.viewport.pointFromPixel(new OpenSeadragon.Point(x, y), true);
  return [point.x * width, point.y * width];
}
// What of the slide is in sight: x0, y0, x1, y1.
export function inSight() {
  const view = viewer.viewport.getBounds(true);
  const edges = [view.x, view.y, view.x + view.width, view.y + view.height].map((edge) => edge * width);
  return edges.map((edge, k) => Math.min(Math.max(edge, 0), k % 2 ? height : width));
}
export function lengthText(um) {
  return um >= 1000 ? `${(um / 1000).toPrecision(3)} mm` : `${um >= 100 ? Math.round(um) : um.toPrecision(2)} µm`;
}

// ---- the layers, from the lowest to the highest

const ORDER = ["slide", "heat", "quality", "left", "right"];
const ENLARGED = { slide: 0, heat: result.enlargedLevels, quality: result.enlargedLevels, left: result.enlargedLevels, right: result.enlargedLevels };
const turns = {}, shown = {}, known = new Map();  // items of OpenSeadragon's world: their layer, turn, and whether they are drawn
let nucleiOpacity = 1, undrawn = 0;
function wait(by) {
  undrawn += by;
  document.body.dataset.undrawn = undrawn;  // layers that are on their way
}

function tileSource(layer, address) {
  const enlarged = 2 ** ENLARGED[layer];
  return {
    width: width * enlarged, height: height * enlarged, tileSize: result.tile, tileOverlap: layer === "slide" ? result.overlap : 0,
    minLevel: 0, maxLevel: result.fullLevel + ENLARGED[layer],
    getTileUrl: (level, x, y) => address(level, `${x}_${y}`),
    hasTransparency: () => layer !== "slide",
  };
}
const items = () => [...Array(viewer.world.getItemCount()).keys()].map((k) => viewer.world.getItemAt(k));
function remove(layer, before = Infinity) {
  for (const item of items()) {
    const mine = known.get(item);
    if (mine?.layer !== layer || mine.turn >= before) continue;
    viewer.world.removeItem(item);
    known.delete(item);
    if (!mine.isDrawn) wait(-1);
  }
}

// The old layer goes once the new one has all its tiles, so that nothing blinks.
function put(layer, address, opacity = 1) {
  const turn = turns[layer] = (turns[layer] ?? 0) + 1;
  wait(1);
  viewer.addTiledImage({
    tileSource: tileSource(layer, address), x: 0, y: 0, width: 1, opacity,
    get index() { return items().filter((one) => ORDER.indexOf(known.get(one)?.layer) <= ORDER.indexOf(layer)).length; },  // when it is added
    success: ({ item }) => {
      if (turn !== turns[layer]) { viewer.world.removeItem(item); wait(-1); return; }
      const mine = { layer, turn, isDrawn: false };
      known.set(item, mine);
      shown[layer] = item;
      clip();
      const swap = () => {
        mine.isDrawn = true;
        remove(layer, turn);
        wait(-1);
      };
      if (item.getFullyLoaded()) swap(); else item.addOnceHandler("fully-loaded-change", swap);
    },
  });
}
function drop(layer) {
  turns[layer] = (turns[layer] ?? 0) + 1;
  delete shown[layer];
  remove(layer);
}

export function showSlide(yes) { shown.slide?.setOpacity(yes ? 1 : 0); }
export function setNucleiOpacity(opacity) {
  nucleiOpacity = opacity;
  for (const layer of ["left", "right"]) shown[layer]?.setOpacity(opacity);
}
export const getNucleiOpacity = () => nucleiOpacity;
export function drawNuclei() {
  for (const [side, layer] of ["left", "right"].entries()) {
    if (side === 1 && !isSplit()) { drop(layer); continue; }
    const parameters = choice({ fill: Number(state.filled) }, side);
    put(layer, (level, place) => `tiles/nuclei/${level}/${place}.png?${parameters}`, nucleiOpacity);
  }
  $("divider").hidden = !isSplit();
  $("left-name").textContent = state.sides[0].library;
  $("right-name").textContent = state.sides[1].library;
  clip();
}
let heatShown = "";
export function drawHeat() {
  const parameters = state.heat && String(choice({ kind: state.heat }));
  if (parameters === heatShown) return;
  heatShown = parameters;
  if (parameters) put("heat", (level, place) => `tiles/heat/${level}/${place}.png?${parameters}`); else drop("heat");
}
let qualityShown = false;
export function drawQuality() {
  if (state.quality === qualityShown) return;
  qualityShown = state.quality;
  if (state.quality) put("quality", (level, place) => `tiles/quality/${level}/${place}.png?v=${result.version}`); else drop("quality");
}

// ---- the divider: left of it the nuclei in one library's colours, right of it in another's

const clippedAt = new WeakMap();
function clip() {
  const at = isSplit() ? viewer.viewport.pointFromPixel(new OpenSeadragon.Point(state.divider * viewer.viewport.getContainerSize().x, 0), true).x : null;
  for (const [item, { layer }] of known) {
    if (layer !== "left" && layer !== "right") continue;
    if (clippedAt.get(item) === at) continue;
    clippedAt.set(item, at);
    const size = item.getContentSize(), x = at === null ? 1 : Math.min(Math.max(at, 0.0001), 0.9999);
    item.setClip(at === null ? null : layer === "left" ? new OpenSeadragon.Rect(0, 0, x * size.x, size.y)
      : new OpenSeadragon.Rect(x * size.x, 0, (1 - x) * size.x, size.y));
  }
}
export function moveDivider(to) {
  state.divider = Math.min(0.98, Math.max(0.02, to));
  $("divider").style.left = `${100 * state.divider}%`;
  $("divider").setAttribute("aria-valuenow", Math.round(100 * state.divider));
  clip();
}
viewer.addHandler("viewport-change", clip);
viewer.addHandler("resize", () => requestAnimationFrame(clip));
$("divider").onpointerdown = (event) => { $("divider").setPointerCapture(event.pointerId); event.preventDefault(); $("divider").focus(); };
$("divider").onpointermove = (event) => {
  if (!$("divider").hasPointerCapture(event.pointerId)) return;
  const room = $("slide").getBoundingClientRect();
  moveDivider((event.clientX - room.left) / room.width);
};
$("divider").onpointerup = () => tell("divided");
$("divider").onkeydown = (event) => {
  const by = { ArrowLeft: -0.02, ArrowRight: 0.02, PageDown: -0.1, PageUp: 0.1 }[event.key];
  if (!by) return;
  event.preventDefault();
  event.stopPropagation();
  moveDivider(state.divider + by);
  tell("divided");
};

// ---- scale bar, and the rest that follows the place

function showPlace() {
  const um = result.mpp / zoomOf();  // of a pixel of the screen
  const [length, text] = result.scaleBars.findLast(([one]) => one <= 160 * um) ?? result.scaleBars[0];
  $("scale-bar").style.width = `${length / um}px`;
  $("scale-bar").firstElementChild.textContent = text;
  const [x, y] = centre();
  $("place").textContent = `x ${Math.round(x)}, y ${Math.round(y)}`;
}
viewer.addHandler("update-viewport", showPlace);
for (const event of ["animation-finish", "resize"]) viewer.addHandler(event, () => tell("moved"));
viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
on("changed", () => { drawNuclei(); drawHeat(); });

export function beginLayers() {
  if (hasSlide) put("slide", (level, place) => `tiles/slide/${level}/${place}.jpg?v=${result.version}`);
  viewer.viewport.fitBounds(new OpenSeadragon.Rect(0, 0, 1, height / width), true);
  viewer.addOverlay({ element: element("div", { className: "extent" }), location: new OpenSeadragon.Rect(0, 0, 1, height / width) });
}
