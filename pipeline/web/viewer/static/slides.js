// The list of slides of a folder of results.

import { $, colour, element, number, swatch, words } from "./js/dom.js";

const COMMON = 3;  // labels that are named under a slide's bar
const answer = await fetch("api/slides"), folder = await answer.json();
if (!answer.ok) {
  $("facts").textContent = folder.error;
  throw new Error(folder.error);
}
// The address keeps what is chosen.
const link = new URLSearchParams(location.hash.slice(1));
const state = { find: link.get("find") ?? "", library: link.get("library") ?? folder.primary, order: link.get("order") ?? "name" };
if (!folder.libraries.some(({ name }) => name === state.library)) state.library = folder.primary;

const density = (slide) => slide.mm2 ? slide.nuclei / slide.mm2 : null;
const ORDERS = {
  name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
  nuclei: (a, b) => b.nuclei - a.nuclei,
  density: (a, b) => (density(b) ?? -1) - (density(a) ?? -1),
  finished: (a, b) => b.finished.localeCompare(a.finished),
  cautions: (a, b) => b.cautions.length - a.cautions.length,
};
if (!ORDERS[state.order]) state.order = "name";

function row(slide, labels) {
  const href = `slides/${encodeURIComponent(slide.key)}/#library=${encodeURIComponent(state.library)}`;
  const counts = slide.counts[state.library] ?? {}, unlabelled = slide.nuclei - Object.values(counts).reduce((all, n) => all + n, 0);
  const all = [...labels.map(([label, rgb]) => [label, rgb, counts[label] ?? 0]), ["no label", folder.noLabel, unlabelled]].filter(([, , n]) => n > 0);
  const share = (n) => `${(100 * n / slide.nuclei).toFixed(n < slide.nuclei / 100 ? 1 : 0)} %`;
  const stack = element("div", { className: "stack" }, ...all.map(([label, rgb, n]) => {
    const part = element("span", { title: `${words(label)}: ${number(n)} (${share(n)})` });
    part.style.width = `${100 * n / slide.nuclei}%`;
    part.style.background = colour(rgb);
    return part;
  }));
  stack.setAttribute("aria-hidden", "true");
  const common = [...all].sort(([, , a], [, , b]) => b - a).slice(0, COMMON).map(([label, , n]) => `${words(label)} ${share(n)}`).join(", ");
  const remarks = slide.cautions.map((text) => element("p", { className: "caution", textContent: text }));
  if (slide.corrections) remarks.push(element("p", { textContent: `${number(slide.corrections)} corrected` }));
  if (slide.corrections === null) remarks.push(element("p", { className: "caution", textContent: "corrections.csv cannot be read" }));
  if (slide.adapted) remarks.push(element("p", { textContent: "adapted labels" }));
  const cell = (className, ...children) => element("td", { className }, ...children);
  const n = (name, unit, text) => {
    const made = cell(`n ${name}`, text);
    made.dataset.unit = text && ` ${unit}`;
    return made;
  };
  const picture = element("img", { alt: "", loading: "lazy", src: `api/slides/${encodeURIComponent(slide.key)}/overview.jpg` });
  return element("tr", {}, cell("picture", ...(slide.overview ? [picture] : [])), cell("slide", element("a", { href, textContent: slide.name }), ...(slide.folder === slide.name ? [] : [element("p", { className: "common", textContent: slide.folder })])),
    n("nuclei", "nuclei", number(slide.nuclei)), n("area", "mm²", slide.mm2 ? slide.mm2.toPrecision(3) : ""),
    n("density", "per mm²", slide.mm2 ? number(Math.round(density(slide))) : ""),
    cell("labels", stack, element("p", { className: "common", textContent: common })), cell("remarks", ...remarks));
}
function show() {
  const labels = folder.libraries.find(({ name }) => name === state.library)?.labels ?? [];
  const wanted = state.find.toLowerCase();
  const found = folder.slides.filter((slide) => [slide.name, slide.folder, ...slide.cautions].some((text) => text.toLowerCase().includes(wanted)));
  found.sort(ORDERS[state.order]);
  $("slides").replaceChildren(...found.map((slide) => row(slide, labels)));
  const nuclei = found.reduce((all, slide) => all + slide.nuclei, 0);
  $("facts").textContent = `${found.length < folder.slides.length ? `${number(found.length)} of ` : ""}${number(folder.slides.length)} slides, ${number(nuclei)} nuclei`;
  $("labels-of").textContent = `Labels of ${state.library}`;
  $("legend").replaceChildren(...labels.map(([label, rgb]) => element("li", {}, swatch(rgb), words(label))));
  history.replaceState(null, "", `#${new URLSearchParams(Object.entries(state).filter(([name, value]) => value !== "" && (name !== "order" || value !== "name")))}`);
}

document.title = `${folder.folder} – nucpipe`;
$("folder").textContent = folder.folder;
$("library").append(...folder.libraries.map(({ name }) => element("option", { textContent: name })));
for (const [name, event] of [["find", "input"], ["library", "change"], ["order", "change"]]) {
  $(name).value = state[name];
  $(name).addEventListener(event, ({ target }) => { state[name] = target.value; show(); });
}
$("others").hidden = !folder.others.length;
$("others").lastElementChild.append(...folder.others.map(({ name, cause }) => element("li", {}, element("b", { textContent: name }), `: ${cause}`)));
addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== $("find")) { event.preventDefault(); $("find").focus(); }
});
show();
