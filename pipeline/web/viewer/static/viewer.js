// The viewer's page: OpenSeadragon shows two layers of tiles, the slide and its nuclei, both drawn by the server.
// Frames: x and y are pixels of level 0 (as in the store); OpenSeadragon's own frame has the slide's width as 1.

const $ = (id) => document.getElementById(id);
const result = await (await fetch("/api/result")).json();
const [width, height] = result.size;
const hasSlide = !result.note;
const GALLERY = 12;
const mm = (px) => (px * result.mpp / 1000).toPrecision(3);
const size = `${mm(width)} × ${mm(height)} mm`;

// What is shown. The address keeps all of it, so that a link leads back to it.
const state = { library: result.primary, off: new Set(), leastP: 0, area: result.area, detection: result.detection, filled: true, nucleus: null, base: false };
let corrections = result.corrections, chosen = [];  // numbers of the nuclei that a correction would speak of
let uncertainStart = 0, uncertain = [], uncertainAt = -1;

const libraryOf = (name) => result.libraries.find((one) => one.name.toLowerCase() === String(name).toLowerCase());
const number = (n) => n.toLocaleString("en");
const colour = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
const words = (label) => label.replaceAll("_", " ");
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
function choice(more = {}) {
  return new URLSearchParams({
    library: state.library, off: [...state.off].sort((a, b) => a - b).join(","), p: state.leastP,
    area: state.area, detection: state.detection, labels: labelSet(), ...more, v: result.version,
  });
}
// Adapted labels have another address after each correction, so that no old tile is shown.
const isAdapted = () => corrections.generation > 0 && !state.base;
const labelSet = () => isAdapted() ? `adapted.${corrections.generation}` : "base";
async function ask(path, parameters) {
  const answer = await fetch(`${path}?${parameters}`);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}
async function send(path, body) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}
function say(text) { $("said").textContent = text; }

// ---- the two layers

const viewer = OpenSeadragon({
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

function tileSource(name, kind, tileOverlap, enlargedLevels, parameters) {
  const enlarged = 2 ** enlargedLevels;
  return {
    width: width * enlarged, height: height * enlarged, tileSize: result.tile, tileOverlap,
    minLevel: 0, maxLevel: result.fullLevel + enlargedLevels,
    getTileUrl: (level, x, y) => `/tiles/${name}/${level}/${x}_${y}.${kind}?${parameters}`,
    hasTransparency: () => name === "nuclei",
  };
}

let slideLayer = null, nucleiLayer = null, drawing = 0;
if (hasSlide) {
  viewer.addTiledImage({
    tileSource: tileSource("slide", "jpg", result.overlap, 0, `v=${result.version}`), x: 0, y: 0, width: 1, index: 0,
    success: (event) => { slideLayer = event.item; slideLayer.setOpacity($("show-slide").checked ? 1 : 0); },
  });
}

// The old layer goes once the new one has all its tiles, so that nothing blinks.
function drawNuclei() {
  const turn = ++drawing;
  viewer.addTiledImage({
    tileSource: tileSource("nuclei", "png", 0, result.enlargedLevels, choice({ fill: Number(state.filled) })), x: 0, y: 0, width: 1,
    opacity: $("opacity").value / 100,
    success: ({ item }) => {
      if (turn !== drawing) { viewer.world.removeItem(item); return; }
      const old = nucleiLayer;
      nucleiLayer = item;
      const swap = () => { if (old) viewer.world.removeItem(old); document.body.dataset.drawn = turn; };
      if (item.getFullyLoaded()) swap(); else item.addOnceHandler("fully-loaded-change", swap);
    },
  });
}
let waiting;
function changed(afterMs = 120) {
  clearTimeout(waiting);
  waiting = setTimeout(() => { drawNuclei(); fillCounts(); uncertainStart = 0; fillGallery(); writeLink(); }, afterMs);
}

function extent() {
  viewer.addOverlay({ element: element("div", { className: "extent" }), location: new OpenSeadragon.Rect(0, 0, 1, height / width) });
}

// ---- the place: link, scale bar

const zoomOf = () => viewer.viewport.getZoom(true) * viewer.viewport.getContainerSize().x / width;  // screen px per px
function centre() {
  const { x, y } = viewer.viewport.getCenter(true);
  return [x * width, y * width];
}
function goTo(x, y, screenPxPerPx, immediately = false) {
  viewer.viewport.panTo(new OpenSeadragon.Point(x / width, y / width), immediately);
  viewer.viewport.zoomTo(screenPxPerPx * width / viewer.viewport.getContainerSize().x, undefined, immediately);
}
function writeLink() {
  const [x, y] = centre();
  const place = { x: x.toFixed(1), y: y.toFixed(1), zoom: zoomOf().toPrecision(4), library: state.library };
  if (state.off.size) place.off = [...state.off].sort((a, b) => a - b).join(",");
  if (state.leastP) place.p = state.leastP;
  if (state.area !== result.area) place.area = state.area;
  if (state.detection !== result.detection) place.detection = state.detection;
  if (!state.filled) place.fill = 0;
  if (state.base && corrections.generation) place.labels = "base";
  if (state.nucleus !== null) place.nucleus = state.nucleus;
  history.replaceState(null, "", "#" + new URLSearchParams(place));
}
async function readLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  const known = libraryOf(link.get("library") ?? result.primary) ?? libraryOf(result.primary);
  state.library = known.name;
  state.off = new Set((link.get("off") ?? "").split(",").filter(Boolean).map(Number).filter(Number.isInteger));
  state.leastP = Math.min(1, Math.max(0, Number(link.get("p")) || 0));
  state.area = Math.max(0, Number(link.get("area") ?? result.area) || 0);
  state.detection = Math.min(1, Math.max(0, Number(link.get("detection") ?? result.detection) || 0));
  state.filled = link.get("fill") !== "0";
  state.base = link.get("labels") === "base";
  const [x, y, zoom] = ["x", "y", "zoom"].map((name) => Number(link.get(name)));
  const placed = link.has("x") && [x, y, zoom].every(Number.isFinite) && zoom > 0;
  showControls();
  if (placed) goTo(x, y, zoom, true);
  const one = Number(link.get("nucleus"));
  if (link.has("nucleus") && Number.isInteger(one) && one >= 0 && one < result.nuclei) await choose(one, !placed);
  else forget();
}
function showPlace() {
  const um = result.mpp / zoomOf();  // of a pixel of the screen
  const [length, text] = result.scaleBars.findLast(([one]) => one <= 160 * um) ?? result.scaleBars[0];
  $("scale-bar").style.width = `${length / um}px`;
  $("scale-bar").firstElementChild.textContent = text;
  const [x, y] = centre();
  $("place").textContent = `x ${Math.round(x)}, y ${Math.round(y)}`;
}

// ---- the panel

function showControls() {
  const library = libraryOf(state.library);
  $("libraries").replaceChildren(...result.libraries.map((one) => {
    const button = element("button", { textContent: one.name, onclick: () => chooseLibrary(one.name) });
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", one.name === state.library);
    return button;
  }));
  $("labels").replaceChildren(...library.labels.flatMap((label, i) => {
    if (!label.given && !label.count) return [];
    const box = element("input", { type: "checkbox", checked: !state.off.has(i), onchange: (event) => {
      if (event.target.checked) state.off.delete(i); else state.off.add(i);
      changed();
    } });
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = colour(label.colour);
    const count = element("span", { className: "count", textContent: number(label.count) });
    count.dataset.label = i;
    const before = element("span", { className: "before" });
    before.dataset.label = i;
    const row = element("label", {}, box, swatch, element("span", { textContent: words(label.name) }), before, count);
    if (!label.count) row.classList.add("never");
    return [element("li", {}, row)];
  }));
  $("filled").checked = state.filled;
  showFilters();
}
function showFilters() {
  $("least-p").value = state.leastP;
  $("least-p-value").textContent = state.leastP.toFixed(2);
  $("least-area").max = Math.max(40, result.area);
  $("least-area").value = state.area;
  $("least-area-value").textContent = `${state.area} µm²`;
  $("least-detection").value = state.detection;
  $("least-detection-value").textContent = state.detection.toFixed(2);
}
// The legend counts the nuclei that the filters leave.
async function fillCounts() {
  const asked = choice();
  const counts = await ask("/api/counts", asked);
  if (String(asked) !== String(choice())) return;
  for (const shown of $("labels").querySelectorAll(".count")) {
    shown.textContent = number(counts[shown.dataset.label]);
  }
  // The counts of the run stand beside those after corrections.
  const base = isAdapted() ? await ask("/api/counts", choice({ labels: "base" })) : null;
  if (String(asked) !== String(choice())) return;
  for (const shown of $("labels").querySelectorAll(".before")) {
    shown.textContent = base ? `${number(base[shown.dataset.label])} →` : "";
  }
  const seen = counts.reduce((sum, n, label) => state.off.has(label) ? sum : sum + n, 0);
  $("facts").textContent = `${seen < result.nuclei ? `${number(seen)} of ` : ""}${number(result.nuclei)} nuclei · ${size}`;
}
function chooseLibrary(name) {
  if (name === state.library) return;
  state.library = name;
  state.off.clear();
  suggested = [];
  showControls();
  showCorrecting(said);
  changed();
}
function switchAll(on) {
  const labels = libraryOf(state.library).labels;
  state.off = new Set(on ? [] : labels.keys());
  showControls();
  changed();
}

// ---- a nucleus

let outline = null, outlineBox = null;
function forget() {
  state.nucleus = null;
  $("line").replaceChildren();
  if (outline) viewer.removeOverlay(outline);
  outline = null;
  chosen = [];
  $("nucleus").hidden = true;
  markGallery();
}

// The card stands where it does not hide its nucleus: on either side or, on a narrow screen, above or below. Where there
// is no such place the slide moves, if it may.
function placeCard(mayPan) {
  if (!outline) return;
  const card = $("nucleus"), room = $("slide").getBoundingClientRect();
  const [p, q] = [outlineBox.getTopLeft(), outlineBox.getBottomRight()].map((corner) => viewer.viewport.pixelFromPoint(corner));
  const margin = 6;
  let cardBox;
  for (const side of room.width < 640 ? ["bottom", "top", "bottom"] : ["left", "right", "left"]) {
    card.dataset.side = side;
    const { left, right, top, bottom } = card.getBoundingClientRect();
    cardBox = { left: left - room.left, right: right - room.left, top: top - room.top, bottom: bottom - room.top };
    if (q.x + margin < cardBox.left || p.x - margin > cardBox.right || q.y + margin < cardBox.top || p.y - margin > cardBox.bottom) return;
  }
  if (!mayPan) return;
  const to = card.dataset.side === "left" ? new OpenSeadragon.Point((cardBox.right + room.width) / 2, (p.y + q.y) / 2)
    : new OpenSeadragon.Point((p.x + q.x) / 2, cardBox.top / 2);
  viewer.viewport.panBy(viewer.viewport.deltaPointsFromPixels(p.plus(q).divide(2).minus(to)));
}
async function choose(n, move) { show(await ask(`/api/nuclei/${n}`, ""), move, move); }
function show(nucleus, move, mayPan) {
  forget();
  state.nucleus = nucleus.number;
  chosen = [nucleus.number];
  const xs = nucleus.outline.map(([x]) => x), ys = nucleus.outline.map(([, y]) => y);
  const x0 = Math.min(...xs), y0 = Math.min(...ys), w = Math.max(...xs) - x0, h = Math.max(...ys) - y0;
  outline = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  outline.setAttribute("class", "chosen-outline");
  outline.setAttribute("viewBox", `0 0 ${w} ${h}`);
  outline.setAttribute("preserveAspectRatio", "none");
  const d = "M" + nucleus.outline.map(([x, y]) => `${x - x0} ${y - y0}`).join("L") + "Z";
  for (let k = 0; k < 2; k++) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", d);
    outline.append(path);
  }
  outlineBox = new OpenSeadragon.Rect(x0 / width, y0 / width, w / width, h / width);
  viewer.addOverlay({ element: outline, location: outlineBox });
  if (move) goTo(nucleus.x, nucleus.y, Math.max(zoomOf(), 4 * result.mpp / 0.25));
  $("crop").hidden = !hasSlide;
  if (hasSlide) $("crop").src = `/api/nuclei/${nucleus.number}/crop.png?v=${result.version}`;
  const measures = {
    position: `${nucleus.x.toFixed(1)}, ${nucleus.y.toFixed(1)}`, area: `${nucleus.area_um2.toFixed(1)} µm²`,
    detection: nucleus.detection_p.toFixed(2), number: nucleus.number, id: nucleus.id,
  };
  $("measures").replaceChildren(...Object.entries(measures).flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: value })]));
  showCorrecting(nucleus.corrected);
  $("probabilities").replaceChildren(...Object.entries(isAdapted() && nucleus.adapted || nucleus.labels).map(([name, labels]) =>
    element("div", { className: "system" }, element("b", { textContent: name }),
      ...labels.filter((label, k) => k < 2 || label.chosen || label.p >= 0.05).map((label) => {
        const fill = element("i");
        fill.style.width = `${100 * label.p}%`;
        fill.style.background = colour(label.colour);
        return element("div", { className: label.chosen ? "bar chosen" : "bar" }, fill,
          element("span", { textContent: words(label.name) }), element("span", { textContent: label.p.toFixed(2) }));
      }))));
  $("nucleus").hidden = false;
  placeCard(mayPan);
  markGallery();
  writeLink();
}

// ---- corrections

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", NONE = "not_a_nucleus";
let suggested = [], drawnLine = null, said = {};
const correctable = (library) => [...library.labels.entries()].filter(([i]) => i < library.labels.length - 1);

// The labels that the chosen nuclei may be given, each with its key.
function showCorrecting(corrected = {}) {
  said = corrected;
  const library = libraryOf(state.library);
  const label = (text, key, pressed, onclick, dot) => {
    const button = element("button", { title: `${text} (Shift+${key})`, onclick }, element("kbd", { textContent: key }));
    if (dot) {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = colour(dot);
      button.append(swatch);
    }
    button.append(text);
    button.setAttribute("aria-pressed", pressed);
    return button;
  };
  const buttons = correctable(library).map(([i, one]) =>
    label(words(one.name), LETTERS[i], said[library.name] === one.name, () => correct(library.name, one.name), one.colour));
  buttons.push(label("not a nucleus", "X", "" in said, () => correct("", NONE)));
  $("give").replaceChildren(...buttons);
  $("chosen").textContent = chosen.length > 1 ? `${number(chosen.length)} nuclei: in ${library.name} they are …` : `In ${library.name} it is …`;
}
function showCorrections() {
  const n = corrections.count;
  $("corrected").textContent = n ? `${number(n)} ${n === 1 ? "nucleus" : "nuclei"} corrected; all others follow.`
    : "None yet: choose a nucleus and say what it is.";
  $("undo").disabled = !corrections.canUndo;
  $("label-set").hidden = !corrections.generation;
  for (const button of $("label-set").children) {
    button.setAttribute("aria-checked", (button.value === "base") !== isAdapted());
  }
  $("contradictions").replaceChildren(...corrections.contradictions.map((text) => element("li", { textContent: text })));
}
async function taken(answer) {
  corrections = answer;
  state.base = false;
  showCorrections();
  changed(0);
  if (chosen.length === 1) show(await ask(`/api/nuclei/${chosen[0]}`, ""), false, false);
  document.body.dataset.corrections = corrections.count;
}
async function correct(library, label) {
  if (!chosen.length) { say("choose a nucleus first"); return; }
  const numbers = chosen;
  try {
    const answer = await send("/api/corrections", { numbers, library, label });
    if (numbers.length > 1) forget();
    await taken(answer);
    say("");
  } catch (error) { say(error.message); }
}
async function undo() {
  if (!corrections.canUndo) return;
  try { await taken(await send("/api/corrections/undo", {})); } catch (error) { say(error.message); }
}
function showBase(base) {
  if (!corrections.generation) return;
  state.base = base;
  showCorrections();
  changed(0);
  if (state.nucleus !== null) choose(state.nucleus, false);
}
async function suggestNext() {
  if (!suggested.length) suggested = await ask("/api/nuclei/suggested", choice({ count: 8, off: "" }));
  const next = suggested.shift();
  if (next === undefined) { say("nothing to suggest"); return; }
  await choose(next, true);
}

// A line drawn by hand round several nuclei.
const isDrawing = () => document.body.classList.contains("drawing");
function drawRound(on) {
  document.body.classList.toggle("drawing", on);
  $("draw").setAttribute("aria-pressed", on);
  viewer.setMouseNavEnabled(!on);
  if (on) { forget(); writeLink(); }
  drawnLine = null;
}
function extendLine(event) {
  const room = $("slide").getBoundingClientRect();
  const at = [event.clientX - room.left, event.clientY - room.top];
  const point = viewer.viewport.pointFromPixel(new OpenSeadragon.Point(...at));
  drawnLine.screen.push(at.join(" "));
  drawnLine.place.push([point.x * width, point.y * width]);
  drawnLine.path.setAttribute("d", `M${drawnLine.screen.join("L")}Z`);
}
$("line").onpointerdown = (event) => {
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  $("line").replaceChildren(path);
  $("line").setPointerCapture(event.pointerId);
  drawnLine = { path, screen: [], place: [] };
  extendLine(event);
};
$("line").onpointermove = (event) => { if (drawnLine) extendLine(event); };
$("line").onpointerup = async () => {
  const line = drawnLine;
  drawRound(false);
  if (!line || line.place.length < 3) { forget(); return; }
  try {
    const found = await send(`/api/nuclei/inside?${choice()}`, { polygon: line.place });
    forget();
    if (found.length === 1) { await choose(found[0], false); return; }
    if (!found.length) { say("no nuclei in there"); return; }
    chosen = found;
    $("line").replaceChildren(line.path);
    $("crop").hidden = true;
    $("measures").replaceChildren();
    $("probabilities").replaceChildren();
    $("nucleus").hidden = false;
    showCorrecting();
  } catch (error) { say(error.message); }
};

// ---- the least certain

async function fillGallery() {
  const library = state.library;
  const found = await ask("/api/nuclei/uncertain", choice({ start: uncertainStart, count: GALLERY }));
  if (library !== state.library) return;
  uncertain = found;
  uncertainAt = -1;
  $("gallery").replaceChildren(...found.map((one) => {
    const title = `${words(one.label)}, ${one.p.toFixed(2)}`;
    const button = element("button", { title, onclick: () => choose(one.number, true) });
    if (hasSlide) button.append(element("img", { alt: title, src: `/api/nuclei/${one.number}/crop.png?v=${result.version}` }));
    button.append(one.p.toFixed(2));
    button.dataset.number = one.number;
    return button;
  }));
  $("range").textContent = found.length ? `${number(uncertainStart + 1)}–${number(uncertainStart + found.length)}` : "none";
  $("less").disabled = uncertainStart === 0;
  $("more").disabled = found.length < GALLERY;
  markGallery();
}
function markGallery() {
  for (const button of $("gallery").children) {
    button.setAttribute("aria-current", Number(button.dataset.number) === state.nucleus);
  }
}
async function turnPage(by) {
  uncertainStart = Math.max(0, uncertainStart + by * GALLERY);
  await fillGallery();
}
async function step(by) {
  const now = uncertain.findIndex((one) => one.number === state.nucleus);
  let next = now < 0 ? 0 : now + by;
  if (next >= uncertain.length && !$("more").disabled) { await turnPage(1); next = 0; }
  if (next < 0 && uncertainStart > 0) { await turnPage(-1); next = uncertain.length - 1; }
  if (uncertain[next]) await choose(uncertain[next].number, true);
}

// ---- what the user does

$("zoom-in").onclick = () => viewer.viewport.zoomBy(1.6);
$("zoom-out").onclick = () => viewer.viewport.zoomBy(1 / 1.6);
$("home").onclick = () => viewer.viewport.goHome();
$("all").onclick = () => switchAll(true);
$("none").onclick = () => switchAll(false);
$("close").onclick = () => { forget(); writeLink(); };
$("less").onclick = () => turnPage(-1);
$("more").onclick = () => turnPage(1);
for (const [id, name] of [["least-p", "leastP"], ["least-area", "area"], ["least-detection", "detection"]]) {
  $(id).oninput = (event) => {
    state[name] = Number(event.target.value);
    showFilters();
    changed();
  };
}
$("opacity").oninput = (event) => {
  $("opacity-value").textContent = `${event.target.value} %`;
  nucleiLayer?.setOpacity(event.target.value / 100);
};
function fill(filled) {
  state.filled = $("filled").checked = filled;
  drawNuclei();
  writeLink();
}
$("undo").onclick = undo;
$("suggest").onclick = suggestNext;
$("draw").onclick = () => drawRound(!isDrawing());
for (const button of $("label-set").children) button.onclick = () => showBase(button.value === "base");
$("filled").onchange = (event) => fill(event.target.checked);
$("show-slide").onchange = (event) => slideLayer?.setOpacity(event.target.checked ? 1 : 0);
$("copy").onclick = async () => {
  writeLink();
  try { await navigator.clipboard.writeText(location.href); say("copied"); } catch { say("copy it from the address bar"); }
  setTimeout(() => say(""), 4000);
};
viewer.addHandler("canvas-click", async (event) => {
  if (!event.quick) return;
  const point = viewer.viewport.pointFromPixel(event.position);
  const found = await ask("/api/nuclei/at", choice({ x: point.x * width, y: point.y * width, tolerance: 6 / zoomOf() }));
  if (found) show(found, false, true); else { forget(); writeLink(); }
});
viewer.addHandler("update-viewport", showPlace);
// What was drawn lies on the screen, not on the slide.
viewer.addHandler("animation-start", () => { if (chosen.length > 1) { forget(); writeLink(); } });
viewer.addHandler("animation-finish", () => { writeLink(); placeCard(false); });
viewer.addHandler("resize", () => placeCard(false));
viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
addEventListener("hashchange", async () => { await readLink(); changed(); });
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT" && event.target.type !== "checkbox") return;
  const key = event.key;
  if (event.shiftKey && /^[a-z]$/i.test(key)) {
    const one = correctable(libraryOf(state.library)).find(([i]) => LETTERS[i] === key.toUpperCase());
    if (one) correct(state.library, one[1].name); else if (key.toUpperCase() === "X") correct("", NONE);
    return;
  }
  if (key >= "1" && key <= String(Math.min(9, result.libraries.length))) chooseLibrary(result.libraries[Number(key) - 1].name);
  else if (key === "n") step(1);
  else if (key === "p") step(-1);
  else if (key === "f") fill(!state.filled);
  else if (key === "h") nucleiLayer?.setOpacity(nucleiLayer.getOpacity() > 0 ? 0 : $("opacity").value / 100);
  else if (key === "b") showBase(!state.base);
  else if (key === "z") undo();
  else if (key === "s") suggestNext();
  else if (key === "d") drawRound(!isDrawing());
  else if (key === "0") viewer.viewport.goHome();
  else if (key === "+" || key === "=") viewer.viewport.zoomBy(1.6);
  else if (key === "-") viewer.viewport.zoomBy(1 / 1.6);
  else if (key === "Escape") { drawRound(false); forget(); writeLink(); }
});

// ---- begin

document.title = `${result.name} – nucpipe`;
$("name").textContent = result.name;
if (!hasSlide) {
  $("note").hidden = false;
  $("note").textContent = `The nuclei alone: ${result.note}`;
  $("slide-toggle").hidden = true;
}
viewer.viewport.fitBounds(new OpenSeadragon.Rect(0, 0, 1, height / width), true);
extent();
await readLink();
showCorrections();
drawNuclei();
fillCounts();
fillGallery();
