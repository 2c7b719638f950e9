// The nuclei whose label is least certain, to go through.

import { $, ask, choice, element, hasSlide, number, on, result, state, words } from "./page.js";
import { choose } from "./card.js";

const SHOWN = 12;
let start = 0, uncertain = [];

async function fillGallery() {
  const asked = String(choice({ start, count: SHOWN }));
  const found = await ask("api/nuclei/uncertain", asked);
  if (asked !== String(choice({ start, count: SHOWN }))) return;
  uncertain = found;
  $("gallery").replaceChildren(...found.map((one) => {
    const title = `${words(one.label)}, ${one.p.toFixed(2)}`;
    const button = element("button", { title, onclick: () => choose(one.number, true) });
    if (hasSlide) button.append(element("img", { alt: title, src: `api/nuclei/${one.number}/crop.png?v=${result.version}` }));
    button.append(one.p.toFixed(2));
    button.dataset.number = one.number;
    return button;
  }));
  $("range").textContent = found.length ? `${number(start + 1)}–${number(start + found.length)}` : "none";
  $("less").disabled = start === 0;
  $("more").disabled = found.length < SHOWN;
  mark();
}
function mark() {
  for (const button of $("gallery").children) {
    button.setAttribute("aria-current", Number(button.dataset.number) === state.nucleus);
  }
}
async function turnPage(by) {
  start = Math.max(0, start + by * SHOWN);
  await fillGallery();
}
// Goes to the next or, with -1, the previous one.
export async function step(by) {
  const now = uncertain.findIndex((one) => one.number === state.nucleus);
  let next = now < 0 ? 0 : now + by;
  if (next >= uncertain.length && !$("more").disabled) { await turnPage(1); next = 0; }
  if (next < 0 && start > 0) { await turnPage(-1); next = uncertain.length - 1; }
  if (uncertain[next]) await choose(uncertain[next].number, true);
}
on("nucleus", mark);
on("changed", () => { start = 0; fillGallery(); });
$("less").onclick = () => turnPage(-1);
$("more").onclick = () => turnPage(1);
