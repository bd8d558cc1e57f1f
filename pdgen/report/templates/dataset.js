"use strict";
const PAGE = 20;
const chunks = new Map();  // shard -> its samples, or the pending promise of them
let index = null, selected = [];

const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

// Both are called by the scripts under report/.
function pdgen_index(data) {
  index = data;
  index.starts = [];
  let total = 0;
  for (const shard of index.shards) { index.starts.push(total); total += shard[2]; }
  showFilters();
  readHash();
  show();
}
function pdgen_chunk(name, samples) {
  const waiting = chunks.get(name);
  chunks.set(name, samples);
  if (waiting && waiting.resolve) waiting.resolve(samples);
}

function load(name) {
  const known = chunks.get(name);
  if (Array.isArray(known)) return Promise.resolve(known);
  if (known) return known.promise;
  const waiting = {};
  waiting.promise = new Promise((resolve, reject) => {
    waiting.resolve = resolve;
    const script = make("script");
    script.src = `report/${name}.js`;
    script.onerror = () => { chunks.delete(name); reject(new Error(`report/${name}.js is missing`)); };
    document.head.append(script);
  });
  chunks.set(name, waiting);
  return waiting.promise;
}

const state = { subset: "", task: "", operation: "", verdict: "", page: 0 };
const unique = values => [...new Set(values)];

function showFilters() {
  const options = {
    subset: unique(index.shards.map(shard => shard[1])),
    task: index.tasks.filter(Boolean),
    operation: index.operations,
    verdict: index.verdicts.filter((name, number) => name && index.verdict.includes(number)),
  };
  for (const [name, values] of Object.entries(options)) {
    const label = make("label", "", name), select = make("select");
    select.id = `filter-${name}`;
    select.append(new Option("all", ""), ...values.map(value => new Option(value, value)));
    select.onchange = () => { state[name] = select.value; state.page = 0; writeHash(); show(); };
    label.append(select);
    document.getElementById("filters").append(label);
  }
}
function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of ["subset", "task", "operation", "verdict"]) {
    const select = document.getElementById(`filter-${name}`);
    select.value = given.get(name) || "";
    if (select.selectedIndex < 0) select.value = "";
    state[name] = select.value;
  }
  state.page = Math.max(0, (parseInt(given.get("page")) || 1) - 1);
}
function writeHash() {
  const given = new URLSearchParams();
  for (const name of ["subset", "task", "operation", "verdict"]) if (state[name]) given.set(name, state[name]);
  if (state.page) given.set("page", state.page + 1);
  history.replaceState(null, "", `#${given}`);
}

// Return [shard, number in the shard] of every sample that passes the filters.
function select() {
  const task = index.tasks.indexOf(state.task), verdict = index.verdicts.indexOf(state.verdict);
  const bit = state.operation ? 1 << index.operations.indexOf(state.operation) : 0;
  const found = [];
  index.shards.forEach(([name, subset, count], s) => {
    if (state.subset && subset !== state.subset) return;
    for (let k = 0; k < count; k++) {
      const i = index.starts[s] + k;
      if (state.task && index.task[i] !== task) continue;
      if (state.verdict && index.verdict[i] !== verdict) continue;
      if (bit && !(index.bits[i] & bit)) continue;
      found.push([name, k]);
    }
  });
  return found;
}

let turn = 0;
async function show() {
  const mine = ++turn;
  const found = select(), pages = Math.max(1, Math.ceil(found.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const shown = found.slice(state.page * PAGE, (state.page + 1) * PAGE);
  const where = document.getElementById("where"), list = document.getElementById("list");
  where.textContent = `${found.length.toLocaleString("en")} samples, page ${state.page + 1} of ${pages.toLocaleString("en")}`;
  for (const button of document.querySelectorAll("[data-turn]")) {
    const page = state.page + Number(button.dataset.turn);
    button.disabled = page < 0 || page >= pages;
    button.onclick = () => { state.page = page; writeHash(); show(); document.getElementById("samples").scrollIntoView(); };
  }
  try {
    await Promise.all(unique(shown.map(([name]) => name)).map(load));
    if (mine === turn) list.replaceChildren(...shown.map(([name, k]) => article(chunks.get(name)[k])));
  } catch (fault) {
    if (mine === turn) list.replaceChildren(make("p", "", fault.message));
  }
}

function article(sample) {
  const node = make("article"), head = make("div", "head"), steps = make("ol", "steps");
  const prompt = sample.segments.find(segment => segment.stage === "prompt");
  head.append(make("strong", "", prompt.spans.map(span => span[1]).join(" ")));
  if (sample.verdict) head.append(make("span", `badge ${sample.verdict}`, sample.verdict));
  if (sample.task) head.append(make("span", "badge", sample.task));
  if (sample.note) head.append(make("span", "badge", sample.note));
  head.append(make("span", "soft", `${sample.id}${sample.complete ? "" : ", incomplete trajectory"}`));
  let column = null, closed = true, plans = 0;  // a plan or a refined picture begins a column
  for (const segment of sample.segments) {
    if (segment.stage === "prompt") continue;
    if (!column || (closed && segment.stage !== "inspect")) {
      column = make("li");
      steps.append(column);
      closed = false;
    }
    closed = closed || Boolean(segment.source);
    const operation = segment.stage === "plan" ? sample.operations[plans++] : "";
    column.append(stage(segment, operation));
  }
  node.append(head, steps);
  return node;
}
function stage(segment, operation) {
  const node = make("section", `stage ${segment.stage}`), label = make("div", "label");
  const name = segment.stage[0].toUpperCase() + segment.stage.slice(1);
  label.append(make("span", "", operation ? `${name}: ${operation}` : name));
  if (!segment.target) label.append(make("span", "soft", "context"));
  node.append(label);
  if (segment.source) {
    const [width, height] = segment.size, image = make("img", Math.max(width, height) < 128 ? "pixelated" : "");
    Object.assign(image, { src: segment.source, width, height, alt: segment.stage, loading: "lazy" });
    image.title = `${width} x ${height} px`;
    node.append(image);
  }
  for (const [tag, words] of segment.spans || []) {
    const paragraph = make("p", tag ? `tagged${tag === "refine" ? " fault" : ""}` : "");
    if (tag) paragraph.append(make("span", "tag", tag));
    paragraph.append(words);
    node.append(paragraph);
  }
  if (segment.judged) {
    const { accept, analysis } = segment.judged;
    node.append(make("p", `judged ${accept ? "accepts" : "rejects"}`, accept ? "judge accepts" : `judge rejects: ${analysis}`));
    node.lastChild.title = analysis;
  }
  return node;
}
window.onhashchange = () => { if (index) { readHash(); show(); } };
