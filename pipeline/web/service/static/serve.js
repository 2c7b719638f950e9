// The service's page: a form that sends an image and draws the answer, and the service's description for programs.

const $ = (id) => document.getElementById(id);
const words = (label) => label.replaceAll("_", " ");
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
function headers() {
  const token = $("token").value.trim();
  return token ? { Authorization: `Bearer ${token}` } : {};
}
async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  return answer;
}
function say(text, bad = false) {
  $("said").textContent = text;
  $("said").className = bad ? "bad" : "";
}

// ---- what the service has

let libraries = [];
async function readFacts() {
  libraries = await (await ask("/v1/libraries")).json();
  const models = await (await ask("/v1/models")).json();
  $("models").textContent = models.map((model) => `${model.kind} ${model.name}`).join(" · ");
  $("primary").replaceChildren(...libraries.map((one) => element("option", { textContent: one.library })));
  $("primary").selectedIndex = libraries.length - 1;
}

// ---- an image is sent

let last = null;  // the answer that is drawn
$("form").onsubmit = async (event) => {
  event.preventDefault();
  const button = $("form").querySelector("button");
  button.disabled = true;
  say("…");
  try {
    if (!libraries.length) await readFacts();
    const form = new FormData($("form"));
    const began = performance.now();
    const answer = await (await ask("/v1/nuclei", { method: "POST", body: form })).json();
    say(`${((performance.now() - began) / 1000).toFixed(1)} s`);
    last = { answer, form, pixels: await bitmap(form.get("image")) };
    draw();
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
};
async function bitmap(file) {
  try { return await createImageBitmap(file); } catch { return null; }  // no browser shows TIFF
}
$("primary").onchange = () => draw();
$("token").onchange = () => readFacts().then(() => say(""), (error) => say(error.message, true));

function draw() {
  if (!last) return;
  const { answer, pixels } = last;
  const library = libraries.find((one) => one.library === $("primary").value);
  const colours = Object.fromEntries(library.labels.map((label) => [label.label, label.colour]));
  const scale = Math.max(1, Math.min(4, Math.floor(760 / Math.max(answer.width, answer.height))));
  const canvas = $("canvas"), context = canvas.getContext("2d");
  canvas.width = answer.width * scale;
  canvas.height = answer.height * scale;
  context.fillStyle = "#f4f5f7";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (pixels) context.drawImage(pixels, 0, 0, canvas.width, canvas.height);
  context.lineWidth = 2;
  const counts = {};
  for (const nucleus of answer.nuclei) {
    const label = nucleus.labels[library.library]?.label ?? "no label";
    counts[label] = (counts[label] ?? 0) + 1;
    const [r, g, b] = colours[label] ?? [150, 150, 150];
    context.strokeStyle = `rgb(${r} ${g} ${b})`;
    context.beginPath();
    nucleus.outline.forEach(([x, y], k) => k ? context.lineTo(x * scale, y * scale) : context.moveTo(x * scale, y * scale));
    context.closePath();
    context.stroke();
  }
  $("count").textContent = answer.count === 1 ? "1 nucleus" : `${answer.count} nuclei`;
  $("legend").replaceChildren(...Object.entries(counts).sort((a, b) => b[1] - a[1]).map(([label, count]) => {
    const dot = element("i");
    const [r, g, b] = colours[label] ?? [150, 150, 150];
    dot.style.background = `rgb(${r} ${g} ${b})`;
    return element("li", {}, dot, element("span", { textContent: words(label) }), element("b", { textContent: count }));
  }));
  $("result").hidden = false;
}
$("save").onclick = async (event) => {
  if ($("save").href.startsWith("blob:")) return;  // the click that this one makes
  event.preventDefault();
  const form = new FormData();
  for (const name of ["image", "mpp"]) form.set(name, last.form.get(name));
  form.set("primary", $("primary").value);
  form.set("format", "geojson");
  try {
    const content = await (await ask("/v1/nuclei", { method: "POST", body: form })).blob();
    $("save").href = URL.createObjectURL(content);
    $("save").click();
    URL.revokeObjectURL($("save").href);
    $("save").removeAttribute("href");
  } catch (error) {
    say(error.message, true);
  }
};
$("save").href = "#";

// ---- the description

function typeOf(schema, all) {
  if (schema.$ref) return typeOf(all[schema.$ref.split("/").at(-1)], all);
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map((one) => typeOf(one, all)).join(" or ");
  if (schema.type === "array") return `${typeOf(schema.items, all)}, several`;
  if (schema.contentMediaType || schema.format === "binary") return "file";
  return schema.type ?? "";
}
async function describe() {
  const description = await (await fetch("/openapi.json")).json();
  const all = description.components?.schemas ?? {};
  $("example").textContent = `curl -F image=@tile.png -F mpp=0.25 ${location.origin}/v1/nuclei`;
  $("operations").replaceChildren(...Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => {
      const body = operation.requestBody?.content["multipart/form-data"]?.schema;
      const schema = body?.$ref ? all[body.$ref.split("/").at(-1)] : body;
      const rows = Object.entries(schema?.properties ?? {}).map(([name, field]) => element("tr", {},
        element("td", {}, element("code", { textContent: name })),
        element("td", { textContent: typeOf(field, all) }),
        element("td", { textContent: schema.required?.includes(name) ? "needed" : `default ${field.default ?? "none"}` }),
        element("td", { textContent: field.description ?? "" })));
      const answers = Object.entries(operation.responses).map(([status, one]) => `${status} ${one.description}`).join(", ");
      return element("details", {},
        element("summary", {}, element("code", { textContent: `${method.toUpperCase()} ${path}` }), ` ${operation.description ?? ""}`),
        ...(rows.length ? [element("table", {}, element("tbody", {}, ...rows))] : []),
        element("p", { className: "grey", textContent: `Answers: ${answers}` }));
    })));
}

describe();
readFacts().catch((error) => say(error.message, true));
