// The chosen nucleus: its outline, and a card with its labels.

import { $, ask, chooseRadio, colour, element, hasSlide, isAdapted, libraryOf, makeRadios, number, on, result, say, state, svg, swatch, tell, width, words } from "./page.js";
import { goTo, viewer, zoomOf } from "./layers.js";
import { writeLink } from "./link.js";
import { chooseLibrary } from "./legend.js";

export const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", NONE = "not_a_nucleus";
export const chosen = { numbers: [], said: {} };  // the nuclei that a correction would speak of, and what was said of one
export const correctable = (library) => [...library.labels.entries()].filter(([i]) => i < library.labels.length - 1);
const narrow = matchMedia("(max-width: 760px)");  // as in viewer.css: the card lies over the panel

let outline = null, outlineBox = null;
export function forget() {
  state.nucleus = null;
  tell("several", null);
  if (outline) viewer.removeOverlay(outline);
  outline = null;
  chosen.numbers = [];
  $("nucleus").hidden = true;
  tell("nucleus");
}

// The card stands beside its nucleus. Where there is no such place the slide moves, if it may.
export function placeCard(mayPan) {
  if (!outline || narrow.matches) return;
  const card = $("nucleus"), room = $("slide").getBoundingClientRect();
  const [p, q] = [outlineBox.getTopLeft(), outlineBox.getBottomRight()].map((corner) => viewer.viewport.pixelFromPoint(corner));
  const margin = 6;
  let cardBox;
  for (const side of ["left", "right", "left"]) {
    card.dataset.side = side;
    const { left, right, top, bottom } = card.getBoundingClientRect();
    cardBox = { left: left - room.left, right: right - room.left, top: top - room.top, bottom: bottom - room.top };
    if (q.x + margin < cardBox.left || p.x - margin > cardBox.right || q.y + margin < cardBox.top || p.y - margin > cardBox.bottom) return;
  }
  if (!mayPan) return;
  const to = new OpenSeadragon.Point((cardBox.right + room.width) / 2, (p.y + q.y) / 2);
  viewer.viewport.panBy(viewer.viewport.deltaPointsFromPixels(p.plus(q).divide(2).minus(to)));
}
export async function choose(n, move) { show(await ask(`api/nuclei/${n}`), move, move); }
export function show(nucleus, move, mayPan) {
  forget();
  state.nucleus = nucleus.number;
  chosen.numbers = [nucleus.number];
  const xs = nucleus.outline.map(([x]) => x), ys = nucleus.outline.map(([, y]) => y);
  const x0 = Math.min(...xs), y0 = Math.min(...ys), w = Math.max(...xs) - x0, h = Math.max(...ys) - y0;
  const d = "M" + nucleus.outline.map(([x, y]) => `${x - x0} ${y - y0}`).join("L") + "Z";
  outline = svg("svg", { class: "chosen-outline", viewBox: `0 0 ${w} ${h}`, preserveAspectRatio: "none" }, svg("path", { d }), svg("path", { d }));
  outlineBox = new OpenSeadragon.Rect(x0 / width, y0 / width, w / width, h / width);
  viewer.addOverlay({ element: outline, location: outlineBox });
  if (move) goTo(nucleus.x, nucleus.y, Math.max(zoomOf(), 4 * result.mpp / 0.25));
  $("crop").hidden = !hasSlide;
  if (hasSlide) $("crop").src = `api/nuclei/${nucleus.number}/crop.png?v=${result.version}`;
  const measures = {
    position: `${nucleus.x.toFixed(1)}, ${nucleus.y.toFixed(1)}`, area: `${nucleus.area_um2.toFixed(1)} µm²`,
    detection: nucleus.detection_p.toFixed(2), number: nucleus.number, id: nucleus.id,
  };
  if (nucleus.quality) measures.quality = nucleus.quality.join(", ") || "good";
  $("measures").replaceChildren(...Object.entries(measures).flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: value })]));
  showCorrecting(nucleus.corrected);
  const labels = isAdapted() && nucleus.adapted || nucleus.labels;
  $("probabilities").replaceChildren(...Object.entries(labels).map(([name, some]) =>
    element("div", { className: "system" }, element("b", { textContent: name }),
      ...some.filter((label, k) => k < 2 || label.chosen || label.p >= 0.05).map((label) => {
        const fill = element("i");
        fill.style.width = `${100 * label.p}%`;
        fill.style.background = colour(label.colour);
        return element("div", { className: label.chosen ? "bar chosen" : "bar" }, fill,
          element("span", { textContent: words(label.name) }), element("span", { textContent: label.p.toFixed(2) }));
      }))));
  $("nucleus").hidden = false;
  const best = labels[state.sides[0].library][0];
  say(`Nucleus ${nucleus.number}: ${words(best.name)}, ${best.p.toFixed(2)}`, true);
  placeCard(mayPan);
  tell("nucleus");
  writeLink();
}
// Several nuclei, round which a line was drawn.
export function showSeveral(numbers) {
  chosen.numbers = numbers;
  $("crop").hidden = true;
  $("measures").replaceChildren();
  $("probabilities").replaceChildren();
  $("nucleus").hidden = false;
  showCorrecting();
}

// The labels that the chosen nuclei may be given, each with its key.
export function showCorrecting(said = {}) {
  chosen.said = said;
  const library = libraryOf(state.sides[0].library);
  chooseRadio($("card-libraries"), library.name);
  const button = (text, key, pressed, correction, dot) => {
    const made = element("button", { title: `${text} (Shift+${key})`, onclick: () => tell("correct", correction) },
      element("kbd", { textContent: key }), ...(dot ? [swatch(dot)] : []), text);
    made.setAttribute("aria-pressed", pressed);
    return made;
  };
  $("give").replaceChildren(
    ...correctable(library).map(([i, one]) =>
      button(words(one.name), LETTERS[i], said[library.name] === one.name, [library.name, one.name], one.colour)),
    button("not a nucleus", "X", "" in said, ["", NONE]));
  const n = chosen.numbers.length;
  $("chosen").textContent = n > 1 ? `${number(n)} nuclei: in ${library.name} they are …` : `In ${library.name} it is …`;
}
on("library", () => showCorrecting(chosen.said));

$("card-libraries").replaceChildren(...[...$("libraries").children].map((one) => one.cloneNode(true)));
makeRadios($("card-libraries"), chooseLibrary);
$("close").onclick = () => { forget(); writeLink(); };
viewer.addHandler("animation-finish", () => placeCard(false));
viewer.addHandler("resize", () => placeCard(false));
