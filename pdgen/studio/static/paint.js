// Painting on a picture: brush, colours of the picture, eraser, undo.
import { element } from "./api.js";

const COLOURS = 8;

/** Return the most frequent colours of a canvas, roughly. */
function findColours(context) {
  const { data } = context.getImageData(0, 0, context.canvas.width, context.canvas.height);
  const counts = new Map();
  for (let at = 0; at < data.length; at += 4) {
    const key = (data[at] >> 5) << 6 | (data[at + 1] >> 5) << 3 | data[at + 2] >> 5;
    const known = counts.get(key) ?? { n: 0, sum: [0, 0, 0] };
    known.n += 1;
    for (let c = 0; c < 3; c += 1) known.sum[c] += data[at + c];
    counts.set(key, known);
  }
  return [...counts.values()].sort((a, b) => b.n - a.n).slice(0, COLOURS).map(({ n, sum }) =>
    `#${sum.map((value) => Math.round(value / n).toString(16).padStart(2, "0")).join("")}`);
}

/** Let the person paint on a picture; resolve to a PNG, or to null. */
export async function paint(url) {
  const original = new Image();
  original.src = url;
  await original.decode();
  const canvas = element("canvas", { width: original.naturalWidth, height: original.naturalHeight, tabindex: "0",
    "aria-label": "Picture; paint with the pointer" });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(original, 0, 0);
  const undone = [];
  let erase = false, last = null;
  const colour = element("input", { type: "color", value: findColours(context)[1] ?? "#ff0000" });
  const size = element("input", { type: "range", min: "1", max: String(Math.ceil(canvas.width / 4)), value: String(Math.ceil(canvas.width / 16)) });
  const eraser = element("button", { type: "button", "aria-pressed": "false", onclick: () => { setErase(!erase); } }, "Eraser");
  const setErase = (on) => { erase = on; eraser.setAttribute("aria-pressed", String(on)); };
  const palette = findColours(context).map((value) => {
    const button = element("button", { type: "button", class: "colour", "aria-label": `Colour ${value}`, onclick: () => { colour.value = value; setErase(false); } });
    button.style.backgroundColor = value;
    return button;
  });
  const undo = () => { if (undone.length) context.putImageData(undone.pop(), 0, 0); };

  const locate = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
  };
  const stroke = (from, to) => {
    context.save();
    context.lineWidth = Number(size.value);
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = erase ? context.createPattern(original, "no-repeat") : colour.value;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(to[0] + 0.01, to[1]);
    context.stroke();
    context.restore();
  };
  canvas.addEventListener("pointerdown", (event) => {
    undone.push(context.getImageData(0, 0, canvas.width, canvas.height));
    if (undone.length > 50) undone.shift();
    canvas.setPointerCapture(event.pointerId);
    last = locate(event);
    stroke(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (last === null) return;
    const now = locate(event);
    stroke(last, now);
    last = now;
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { last = null; });

  const dialog = element("dialog", { "aria-label": "Paint" }, element("form", { method: "dialog" }, element("h2", {}, "Paint"), canvas,
    element("div", { class: "line" }, ...palette, element("label", {}, "Colour ", colour), element("label", {}, "Brush ", size), eraser,
      element("button", { type: "button", onclick: undo }, "Undo")),
    element("div", { class: "line" }, element("button", { class: "main", value: "ok" }, "Continue from here"), element("button", { value: "" }, "Cancel"))));
  dialog.addEventListener("keydown", (event) => { if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo(); });
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (dialog.returnValue === "ok") canvas.toBlob(resolve, "image/png");
      else resolve(null);
    });
  });
}
