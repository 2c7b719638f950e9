// What is done with the mouse on the slide itself: choose a nucleus, draw a line round several, measure a distance.
// What is drawn lies in the slide's frame, in an SVG whose group moves with the slide.

import { $, ask, choice, on, result, say, send, svg } from "./page.js";
import { lengthText, toScreen, toSlide, viewer, zoomOf } from "./layers.js";
import { choose, forget, show, showSeveral } from "./card.js";
import { writeLink } from "./link.js";

export const drawings = svg("g"), texts = svg("g");
const line = svg("path", { class: "line" }), ruler = svg("g", { class: "ruler" }, svg("path"), svg("path")), length = svg("text", { class: "length" });
let tool = "", points = [], ends = [], isDragged = false;  // in pixels of level 0

drawings.append(line, ruler);
texts.append(length);
$("drawings").append(drawings, texts);
const path = (places) => places.length ? `M${places.map((place) => place.join(" ")).join("L")}` : "";
function placeText(text, [x, y]) {
  const at = toScreen(x, y);
  text.setAttribute("x", at.x);
  text.setAttribute("y", at.y);
}
function redraw() {
  const { x, y } = toScreen(0, 0);
  drawings.setAttribute("transform", `translate(${x} ${y}) scale(${zoomOf()})`);
  if (ends.length) placeText(length, ends.at(-1));
  tellTexts.forEach((listen) => listen());
}
export const tellTexts = [];
viewer.addHandler("update-viewport", redraw);

// ---- which nucleus is at a place

export const sideAt = (x) => !$("divider").hidden && x > $("divider").offsetLeft ? 1 : 0;
async function chooseAt(x, y) {
  const [px, py] = toSlide(x, y);
  const found = await ask("api/nuclei/at", choice({ x: px, y: py, tolerance: 6 / zoomOf() }, sideAt(x)));
  if (found) show(found, false, true); else { forget(); writeLink(); }
}
viewer.addHandler("canvas-click", (event) => { if (event.quick) chooseAt(event.position.x, event.position.y); });
const middle = () => {
  const { x, y } = viewer.viewport.getContainerSize();
  return [x / 2, y / 2];
};
// By keys: what a click in the middle of the view would do.
export function pickMiddle() {
  if (tool !== "measure") { chooseAt(...middle()); return; }
  setEnd(toSlide(...middle()));
  sayLength();
}

// ---- tools

export const getTool = () => tool;
export function takeTool(name) {
  tool = name;
  if (name === "measure") measured([]);
  document.body.dataset.tool = name;
  for (const [id, one] of [["draw", "draw"], ["measure", "measure"]]) $(id).setAttribute("aria-pressed", tool === one);
  viewer.setMouseNavEnabled(!name);
  if (name) { forget(); writeLink(); }
  if (name === "measure") say("Drag, or click both ends; by keys: move the slide, Enter at both ends.");
  else if (!name) say("");
  points = [];
}
function measured(places) {
  ends = places;
  for (const each of ruler.children) each.setAttribute("d", path(ends));  // a dark line on a light one
  length.textContent = ends.length === 2
    ? lengthText(Math.hypot(ends[1][0] - ends[0][0], ends[1][1] - ends[0][1]) * result.mpp) : "";
  if (ends.length) placeText(length, ends.at(-1));
}
// The second end, or the first one of another distance.
const setEnd = (place) => measured(ends.length === 1 ? [ends[0], place] : [place]);
const sayLength = () => { if (ends.length === 2) say(`Distance: ${length.textContent}`); };
function at(event) {
  const room = $("slide").getBoundingClientRect();
  return toSlide(event.clientX - room.left, event.clientY - room.top);
}
export function stopTools() {
  takeTool("");
  measured([]);
}
$("drawings").onpointerdown = (event) => {
  $("drawings").setPointerCapture(event.pointerId);
  isDragged = true;
  if (tool === "measure") {
    setEnd(at(event));
  } else {
    points = [at(event)];
    line.setAttribute("d", path(points));
  }
};
$("drawings").onpointermove = (event) => {
  if (tool === "measure") {
    if (isDragged) measured([ends[0], at(event)]);
  } else if (isDragged) {
    points.push(at(event));
    line.setAttribute("d", path(points) + "Z");
  }
};
$("drawings").onpointerup = async () => {
  isDragged = false;
  if (tool === "measure") {
    // A click that did not move sets one end; the next click sets the other.
    if (ends.length === 2 && Math.hypot(ends[1][0] - ends[0][0], ends[1][1] - ends[0][1]) * zoomOf() < 4) measured([ends[0]]);
    sayLength();
    return;
  }
  const drawn = points;
  takeTool("");
  if (drawn.length < 3) { forget(); return; }
  try {
    const found = await send(`api/nuclei/inside?${choice()}`, { polygon: drawn });
    if (found.length === 1) { await choose(found[0], false); return; }
    if (!found.length) { forget(); say("no nuclei in there"); return; }
    forget();
    line.setAttribute("d", path(drawn) + "Z");
    showSeveral(found);
  } catch (error) { say(error.message); }
};
$("drawings").onwheel = (event) => {
  event.preventDefault();
  const room = $("slide").getBoundingClientRect();
  const point = new OpenSeadragon.Point(event.clientX - room.left, event.clientY - room.top);
  viewer.viewport.zoomBy(event.deltaY < 0 ? 1.3 : 1 / 1.3, viewer.viewport.pointFromPixel(point));
  viewer.viewport.applyConstraints();
};
on("several", () => line.setAttribute("d", ""));  // whatever was drawn round, another choice is made

$("draw").onclick = () => takeTool(tool === "draw" ? "" : "draw");
$("measure").onclick = () => { if (tool === "measure") stopTools(); else takeTool("measure"); };
