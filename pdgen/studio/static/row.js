// One trajectory as a row of stages that grows: its head with the buttons, its cards, and the stage in work.
import { element, request, toBase64 } from "./api.js";
import { ask, showText } from "./dialogs.js";
import { paint } from "./paint.js";

const TAGS = { ins: "Instruction", des: "Then", refine: "Correct" };

/** Show a text with its tags as labels; of a text in work the last tag may be open. */
function formatText(text) {
  const parts = [];
  for (const [, tag, inside, plain] of text.matchAll(/<(ins|des|refine)>([^]*?)(?:<[/\\]\1>|$)|([^<]+|<)/g)) {
    const words = (inside ?? plain ?? "").trim();
    if (tag) parts.push(element("p", { class: tag }, element("b", {}, `${TAGS[tag]}: `), words));
    else if (words) parts.push(element("p", {}, words));
  }
  return parts;
}

/** A trajectory on the page. ``studio`` gives act, announce, listBranches. */
export class Row {
  constructor(summary, studio) {
    this.studio = studio;
    this.stages = [];
    this.early = new Map(); // stages that came while those before them are still being fetched, by index
    this.live = null;
    this.head = element("div", { class: "head line" });
    this.strip = element("ol", { class: "strip" });
    this.node = element("article", { class: "row", id: `row-${summary.id}`, tabindex: "-1", "aria-label": `Trajectory ${summary.id}` }, this.head, this.strip);
    this.update(summary);
  }

  get id() { return this.summary.id; }

  get picture() { return this.stages.findLast((stage) => stage.kind === "image")?.url; }

  update(summary) {
    this.summary = summary;
    const { id, progress, place, stop_reason: reason, fault } = summary;
    const states = { idle: "paused", waiting: `number ${place} in the queue`, running: "is drawn", done: reason };
    const focused = this.head.contains(document.activeElement) ? document.activeElement.dataset.action : null;
    const button = (action, label, run, enabled) =>
      element("button", { type: "button", "data-action": action, disabled: !enabled, onclick: () => this.studio.act(run) }, label);
    const can = progress === "idle", busy = progress === "running" || progress === "waiting";
    this.node.dataset.progress = progress;
    this.head.replaceChildren(
      element("h2", {}, id), element("span", { class: "state" }, states[progress] ?? progress), element("span", { class: "seed" }, `seed ${summary.seed}`),
      button("step", "Step", () => this.run(1), can), button("run", "Run on", () => this.run(0), can),
      button("stop", "Stop", () => this.stop(), busy),
      element("label", {}, element("input", { type: "checkbox", class: "compare", value: id }), " compare"),
      this.makeExports(), button("delete", "Delete", () => this.remove(), true),
      ...(fault ? [element("p", { class: "fault", role: "alert" }, fault)] : []));
    if (focused) this.head.querySelector(`[data-action=${focused}]`)?.focus();
  }

  makeExports() {
    const base = `/api/trajectories/${this.id}/exports`;
    const links = { zip: "Folder as zip", strip: "Strip", animation: "Animation" };
    const copy = (kind, title) => element("button", { type: "button", onclick: () => this.studio.act(async () => {
      showText(title, await (await fetch(`${base}/${kind}`)).text());
    }) }, title);
    return element("details", { class: "menu" }, element("summary", {}, "Save"), element("div", {},
      ...Object.entries(links).map(([kind, label]) => element("a", { href: `${base}/${kind}`, download: true }, label)),
      copy("command", "Copy as command"), copy("python", "Copy as Python")));
  }

  /** Show a finished stage. */
  add(index, stage, isNew = false) {
    if (index < this.stages.length) return;
    if (index > this.stages.length) return void this.early.set(index, stage);
    this.stages[index] = stage;
    this.clearLive();
    this.strip.append(this.makeCard(index, stage));
    if (isNew) this.strip.scrollTo({ left: this.strip.scrollWidth });
    const next = this.early.get(index + 1);
    if (next) this.add(index + 1, next, isNew);
  }

  makeCard(index, stage) {
    const branched = this.summary.stage;
    const shared = branched !== null && index < branched ? " shared" : branched === index ? " differs" : "";
    const body = stage.kind === "text" ? formatText(stage.text) :
      [element("img", { src: stage.url, width: stage.width, height: stage.height, alt: `${stage.stage} ${index} of ${this.id}` })];
    const origin = stage.origin === "outside" ? " (given)" : "";
    return element("li", { class: `card ${stage.kind}${shared}`, "data-stage": stage.stage }, element("h3", {}, `${stage.stage}${origin}`),
      ...body, this.makeActions(index, stage));
  }

  makeActions(index, stage) {
    if (stage.stage === "given") return "";
    const button = (label, run) => element("button", { type: "button", onclick: () => this.studio.act(run) }, label);
    const n = element("input", { type: "number", min: "1", max: "8", value: "4", "aria-label": "How many ways" });
    const actions = [];
    if (stage.kind === "image") {
      const file = element("input", { type: "file", accept: "image/*", onchange: () => this.studio.act(() => this.replace(index, file.files[0])) });
      actions.push(button("Paint", () => this.paint(index, stage)), element("label", { class: "file" }, "Replace ", file));
    } else actions.push(button("Edit", () => this.edit(index, stage)));
    if (stage.stage === "inspect") {
      const asks = stage.text.includes("<refine>");
      actions.push(asks ? button("Accept instead", () => this.accept(index, stage)) : button("Ask for a correction", () => this.correct(index, stage)));
    }
    actions.push(element("span", { class: "line" }, button("Draw again", () => this.branch({ stage: index, n: Number(n.value), stages: 1 })), n, " ways"));
    if (stage.stage !== "thought" && stage.stage !== "answer") {
      actions.push(button("This is right", () => this.judge(index, stage, true)), button("This is wrong", () => this.judge(index, stage, false)));
    }
    return element("details", { class: "menu" }, element("summary", {}, "Change"), element("div", {}, ...actions));
  }

  /** Show how far the next stage is. */
  showText(index, text) { this.showLive(index, "text", formatText(text), "is written"); }

  showPreview(index, step, steps, url) {
    const done = `step ${step} of ${steps}`;
    if (step === 0) this.began = performance.now();
    const left = step && this.began ? (performance.now() - this.began) / step * (steps - step) / 1000 : 0;
    const time = left ? `, ${left.toFixed(0)} s left` : "";
    this.showLive(index, "image", [url ? element("img", { src: url, alt: done }) : "", element("progress", { max: steps, value: step, "aria-label": done }),
      element("p", {}, done + time)], "is drawn");
  }

  showLive(index, kind, body, word) {
    if (index < this.stages.length) return;
    if (this.live === null) {
      this.live = element("li", {});
      this.strip.append(this.live);
    }
    this.live.className = `card live ${kind}`;
    this.live.replaceChildren(element("h3", {}, word), ...body);
  }

  clearLive() {
    this.live?.remove();
    this.live = null;
  }

  // What the person does.

  run(stages) { return request("POST", `/api/trajectories/${this.id}/run`, { stages }); }

  stop() { return request("POST", `/api/trajectories/${this.id}/stop`); }

  async remove() {
    if (await ask(`Delete ${this.id}?`, [], "Delete")) await request("DELETE", `/api/trajectories/${this.id}`);
  }

  branch(body) { return request("POST", `/api/trajectories/${this.id}/branch`, body); }

  async edit(index, stage) {
    const said = await ask(`Edit the ${stage.stage}`, [["text", "Text", stage.text]], "Continue from here");
    if (said) await this.branch({ stage: index, [stage.stage === "inspect" ? "critique" : "plan"]: said.text.trim() });
  }

  accept(index, stage) { return this.branch({ stage: index, critique: stage.text.split("<refine>")[0].trim() }); }

  async correct(index, stage) {
    const said = await ask("Ask for a correction", [["analysis", "What is wrong", stage.text], ["correction", "What to change", ""]], "Refine");
    if (said) await this.branch({ stage: index, critique: `${said.analysis.trim()} <refine>${said.correction.trim()}</refine>` });
  }

  async paint(index, stage) {
    const painted = await paint(stage.url);
    if (painted) await this.replace(index, painted);
  }

  async replace(index, file) { await this.branch({ stage: index, image: await toBase64(file) }); }

  async judge(index, stage, right) {
    const better = [["", "none"], ...this.studio.listBranches(this.id).map((id) => [id, id])];
    const fields = [["reason", right ? "This is right because" : "This is wrong because", right && stage.stage === "inspect" ? stage.text : ""]];
    if (!right) fields.push(["correction", "What to change", ""], ["better", "A branch that is better", "", "select", better]);
    const said = await ask(`Judge the ${stage.stage}`, fields, "Save as training data");
    if (!said) return;
    const body = { stage: index, right, reason: said.reason.split("<refine>")[0].trim(), correction: said.correction?.trim() ?? "" };
    await request("POST", `/api/trajectories/${this.id}/corrections`, said.better ? { ...body, better: said.better } : body);
    this.studio.announce("The correction is saved.");
  }
}
