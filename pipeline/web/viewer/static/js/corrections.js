// Corrections: said of the chosen nuclei, kept by the server, and all other nuclei follow.

import { $, ask, changed, choice, chooseRadio, element, isAdapted, makeRadios, number, on, say, send, state } from "./page.js";
import { choose, chosen, forget, show } from "./card.js";

let suggested = [];

function showCorrections() {
  const { count, canUndo, generation, contradictions } = state.corrections;
  $("corrected").textContent = count ? `${number(count)} ${count === 1 ? "nucleus" : "nuclei"} corrected; all others follow.`
    : "None yet: choose a nucleus and say what it is.";
  for (const id of ["undo", "card-undo"]) $(id).disabled = !canUndo;
  $("label-set").hidden = !generation;
  chooseRadio($("label-set"), isAdapted() ? "adapted" : "base");
  $("contradictions").replaceChildren(...contradictions.map((text) => element("li", { textContent: text })));
}
async function taken(answer) {
  state.corrections = answer;
  state.base = false;
  showCorrections();
  changed(0);
  if (chosen.numbers.length === 1) show(await ask(`api/nuclei/${chosen.numbers[0]}`), false, false);
  document.body.dataset.corrections = answer.count;
}
export async function correct(library, label) {
  const numbers = chosen.numbers;
  if (!numbers.length) { say("choose a nucleus first"); return; }
  try {
    const answer = await send("api/corrections", { numbers, library, label });
    if (numbers.length > 1) forget();
    await taken(answer);
  } catch (error) { say(error.message); }
}
export async function undo() {
  if (!state.corrections.canUndo) return;
  try { await taken(await send("api/corrections/undo", {})); } catch (error) { say(error.message); }
}
export function showBase(base) {
  if (!state.corrections.generation) return;
  state.base = base;
  showCorrections();
  changed(0);
  if (state.nucleus !== null) choose(state.nucleus, false);
}
export async function suggestNext() {
  if (!suggested.length) suggested = await ask("api/nuclei/suggested", choice({ count: 8, off: "" }));
  const next = suggested.shift();
  if (next === undefined) { say("nothing to suggest"); return; }
  await choose(next, true);
}
on("correct", ([library, label]) => correct(library, label));
on("library", () => { suggested = []; });
on("link", showCorrections);
makeRadios($("label-set"), (value) => showBase(value === "base"));
for (const id of ["undo", "card-undo"]) $(id).onclick = undo;
for (const id of ["suggest", "card-suggest"]) $(id).onclick = suggestNext;
