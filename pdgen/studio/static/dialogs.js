// Dialogs: edit a text, judge a stage, show a text to copy, compare two pictures.
import { element } from "./api.js";

/** Open a dialog with a form; resolve to its values by name, or to null if it is closed. */
export function ask(title, fields, action) {
  return new Promise((resolve) => {
    const inputs = fields.map(([name, label, value, kind = "textarea", options = []]) => {
      const id = `field-${name}`;
      const input = element(kind, { id, name, ...(kind === "textarea" && { rows: "4", maxlength: "8000" }) },
        ...options.map(([key, text]) => element("option", { value: key }, text)));
      if (value !== undefined) input.value = value;
      return element("div", {}, element("label", { for: id }, label), input);
    });
    const form = element("form", { method: "dialog" }, element("h2", {}, title), ...inputs, element("div", { class: "line" },
      element("button", { class: "main", value: "ok" }, action),
      element("button", { value: "", formnovalidate: true }, "Cancel")));
    const dialog = element("dialog", { "aria-label": title }, form);
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "ok" ? Object.fromEntries(new FormData(form)) : null);
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Show a text; its button copies it. */
export async function showText(title, text) {
  if (await ask(title, [["text", title, text]], "Copy")) await navigator.clipboard?.writeText(text);
}

/** Show two pictures over each other, divided by a slider. */
export function compare(first, second) {
  const over = element("img", { src: second.url, alt: second.name });
  const slider = element("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": "Divide" });
  const divide = () => { over.style.clipPath = `inset(0 0 0 ${slider.value}%)`; };
  slider.addEventListener("input", divide);
  divide();
  const dialog = element("dialog", { "aria-label": "Compare" }, element("h2", {}, `${first.name} | ${second.name}`),
    element("div", { class: "compare" }, element("img", { src: first.url, alt: first.name }), over), slider,
    element("form", { method: "dialog", class: "line" }, element("button", {}, "Close")));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
