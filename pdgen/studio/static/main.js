// The page: the form, the list of trajectories, and the rows of the chosen one and its branches.
import { element, listen, request, toBase64 } from "./api.js";
import { compare } from "./dialogs.js";
import { Row } from "./row.js";
import { SettingsForm } from "./settings.js";

const PRESETS = ["a red circle left of a blue square", "three yellow hearts", "a large purple ring and two black crosses", "a green star below a pink arrow on a beige background"];
const find = (id) => document.getElementById(id);
const summaries = new Map();
const rows = new Map();
let chosen = null, current = null, settings = null, given = [];

const studio = {
  /** Run what a button does; an error is shown and announced. */
  async act(run) {
    try {
      await run();
    } catch (fault) {
      say(fault.message, true);
    }
  },
  announce,
  listBranches: (id) => [...summaries.keys()].filter((other) => other !== id && rootOf(other) === rootOf(id)),
};

function rootOf(id) { return id.split("-")[0]; }

function announce(text) { find("announcer").textContent = text; }

function say(text, isFault = false) {
  find("status").textContent = text;
  find("status").classList.toggle("fault", isFault);
}

// The list and the rows.

function showList() {
  const roots = [...summaries.values()].filter((one) => rootOf(one.id) === one.id || !summaries.has(rootOf(one.id)));
  find("list").replaceChildren(...roots.reverse().map((one) => {
    const branches = studio.listBranches(one.id).length;
    return element("li", {}, element("button", { type: "button", "aria-current": String(rootOf(one.id) === chosen), onclick: () => choose(one.id) },
      `${one.id} ${one.prompt.slice(0, 60)}`, element("small", {}, branches ? ` ${branches} more` : "")));
  }));
}

async function choose(id) {
  chosen = rootOf(id);
  rows.clear();
  find("rows").replaceChildren();
  const family = [...summaries.values()].filter((one) => rootOf(one.id) === chosen);
  if (family.length) find("rows").append(element("h2", { class: "prompt" }, family[0].prompt), makeCompare());
  for (const one of family) await showRow(one);
  showList();
}

async function showRow(summary) {
  if (rows.has(summary.id)) return;
  const row = new Row(summary, studio);
  rows.set(summary.id, row);
  const later = [...rows.values()].find((other) => other.id > summary.id && other !== row && other.node.isConnected);
  find("rows").insertBefore(row.node, later?.node ?? null);
  row.node.addEventListener("focusin", () => { current = row; });
  const whole = await request("GET", `/api/trajectories/${summary.id}`);
  whole.stages.forEach((stage, index) => row.add(index, stage));
  row.update(summaries.get(summary.id) ?? whole.summary);
  current ??= row;
}

function makeCompare() {
  return element("button", { type: "button", class: "tool", onclick: () => {
    const two = [...document.querySelectorAll("input.compare:checked")].map((one) => rows.get(one.value)).filter((row) => row?.picture);
    if (two.length !== 2) return say("Tick two branches that have a picture.", true);
    compare({ name: two[0].id, url: two[0].picture }, { name: two[1].id, url: two[1].picture });
  } }, "Compare the two ticked");
}

// The form.

async function create(stages) {
  const seed = find("seed").value;
  const body = { prompt: find("prompt").value, n: Number(find("n").value), stages, settings: settings.read(),
    images: await Promise.all(given.map(toBase64)), ...(seed !== "" && { seed: Number(seed) }) };
  if (!body.prompt.trim()) return find("prompt").focus();
  const made = await request("POST", "/api/trajectories", body);
  for (const one of made.trajectories) if (!summaries.has(one.id)) summaries.set(one.id, one);
  await choose(made.trajectories[0].id);
  say("");
}

function addImages(files) {
  given.push(...[...files].filter((file) => file.type.startsWith("image/")));
  find("given").replaceChildren(...given.map((file, number) => {
    const image = element("img", { src: URL.createObjectURL(file), alt: `given image ${number + 1}` });
    return element("button", { type: "button", "aria-label": `Remove image ${number + 1}`, onclick: () => { given.splice(number, 1); addImages([]); } }, image);
  }));
}

function setUpForm() {
  find("presets").append(...PRESETS.map((text) => element("button", { type: "button", class: "preset", onclick: () => { find("prompt").value = text; } }, text)));
  find("create").addEventListener("submit", (event) => { event.preventDefault(); studio.act(() => create(0)); });
  find("create-step").addEventListener("click", () => studio.act(() => create(1)));
  find("images").addEventListener("change", (event) => { addImages(event.target.files); event.target.value = ""; });
  document.addEventListener("paste", (event) => addImages(event.clipboardData.files));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => { event.preventDefault(); addImages(event.dataTransfer.files); });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("create").requestSubmit();
  });
}

function setUpKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, textarea, select, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
    const order = [...rows.values()].sort((a, b) => (a.node.compareDocumentPosition(b.node) & 4 ? -1 : 1));
    const move = (by) => order[Math.min(Math.max(order.indexOf(current) + by, 0), order.length - 1)]?.node.focus();
    const keys = { n: () => find("prompt").focus(), j: () => move(1), k: () => move(-1), s: () => studio.act(() => current.run(1)),
      r: () => studio.act(() => current.run(0)), x: () => studio.act(() => current.stop()) };
    if (keys[event.key] && (current || event.key === "n")) {
      event.preventDefault();
      keys[event.key]();
    }
  });
}

// Events.

const handlers = {
  async trajectory(summary) {
    const isNew = !summaries.has(summary.id);
    summaries.set(summary.id, summary);
    rows.get(summary.id)?.update(summary);
    if (summary.progress === "done") announce(`${summary.id}: ${summary.stop_reason}`);
    if (isNew) showList();
    if (rootOf(summary.id) === chosen) await showRow(summary);
  },
  stage({ id, index, stage }) {
    rows.get(id)?.add(index, stage, true);
    announce(`${id}: ${stage.stage} ${stage.kind === "text" ? "written" : "drawn"}`);
  },
  text({ id, index, text }) { rows.get(id)?.showText(index, text); },
  preview({ id, index, step, steps, url }) { rows.get(id)?.showPreview(index, step, steps, url); },
  paused({ id }) { rows.get(id)?.clearLive(); },
  removed({ id }) {
    summaries.delete(id);
    rows.get(id)?.node.remove();
    rows.delete(id);
    if (current?.id === id) current = null;
    showList();
  },
  corrections: ({ corrections }) => showCorrections(corrections),
  status: ({ ready, message }) => say(ready ? "" : message),
  reset: () => studio.act(load),
};

function showCorrections(count) { find("corrections").textContent = `Corrections: ${count}`; }

/** Read everything anew; return the cursor of the events that follow. */
async function load() {
  const listing = await request("GET", "/api/trajectories");
  summaries.clear();
  for (const one of listing.trajectories) summaries.set(one.id, one);
  const wanted = chosen && summaries.has(chosen) ? chosen : listing.trajectories.at(-1)?.id;
  if (wanted) await choose(wanted);
  return listing.cursor;
}

const status = await request("GET", "/api/status");
settings = new SettingsForm(find("settings"), status.settings);
showCorrections(status.corrections);
setUpForm();
setUpKeys();
const cursor = await load();
say(status.ready ? "" : status.message);
listen(cursor, handlers, (isConnected) => { if (!isConnected) say("The connection is lost; it is tried again.", true); else if (find("status").classList.contains("fault")) say(""); });
document.body.dataset.ready = "true";
