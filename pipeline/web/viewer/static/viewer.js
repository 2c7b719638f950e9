// The viewer's page begins here: the parts are in js/, and every one says what it does.

import { $, changed, hasSlide, on, result, say, tell } from "./js/page.js";
import { beginLayers, setNucleiOpacity, showSlide, viewer } from "./js/layers.js";
import { readLink, writeLink } from "./js/link.js";
import { showControls } from "./js/legend.js";
import { choose, forget } from "./js/card.js";
import "./js/corrections.js";
import "./js/gallery.js";
import "./js/tools.js";
import "./js/maps.js";
import { fill, visitNext, visitPrevious } from "./js/keys.js";

$("zoom-in").onclick = () => viewer.viewport.zoomBy(1.6);
$("zoom-out").onclick = () => viewer.viewport.zoomBy(1 / 1.6);
$("home").onclick = () => viewer.viewport.goHome();
$("opacity").oninput = (event) => {
  $("opacity-value").textContent = `${event.target.value} %`;
  setNucleiOpacity(event.target.value / 100);
};
$("filled").onchange = (event) => fill(event.target.checked);
$("show-slide").onchange = (event) => showSlide(event.target.checked);
$("copy").onclick = async () => {
  writeLink();
  try { await navigator.clipboard.writeText(location.href); say("copied"); } catch { say("copy it from the address bar"); }
};

document.title = `${result.name} – nucpipe`;
$("name").textContent = result.name;
if (!hasSlide) {
  $("note").hidden = false;
  $("note").textContent = `The nuclei alone: ${result.note}`;
  $("slide-toggle").hidden = true;
}
if (result.place) {
  const { number, count, previous, next, all } = result.place;
  $("slides").hidden = false;
  $("all-slides").href = all;
  $("which").textContent = `${number} of ${count}`;
  $("previous-slide").disabled = !previous;
  $("next-slide").disabled = !next;
  $("previous-slide").onclick = visitPrevious;
  $("next-slide").onclick = visitNext;
}

// The place and the choices of the address are shown, at first and when it changes.
async function begin() {
  const link = readLink();
  showControls();
  tell("link", link);
  if (link.nucleus === null) forget(); else await choose(link.nucleus, !link.placed);
  changed(0);
}
addEventListener("hashchange", begin);
beginLayers();
await begin();
