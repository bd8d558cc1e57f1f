// The form of settings: BAGEL's own names with what each does. Only changes are sent.
import { element } from "./api.js";

const FIELDS = [
  ["mode", "What follows the prompt: plans and sketches, one image, a thought and an image, an edit, or an answer.", ["process", "single_pass", "think", "edit", "understand"]],
  ["max_images", "Largest number of images in a trajectory."],
  ["max_steps", "Largest number of sketches; 0: as for images."],
  ["text.max_tokens", "Largest number of tokens of a text."],
  ["text.temperature", "0 always takes the likeliest token; higher values vary more."],
  ["text.top_p", "Draw from the likeliest tokens that together have this probability."],
  ["image.num_timesteps", "Points of the schedule; more are finer and slower."],
  ["image.timestep_shift", "Spends more steps on the rough picture."],
  ["image.text_scale", "How strictly the picture follows the words; 1: no guidance. In BAGEL: cfg_text_scale."],
  ["image.image_scale", "How strictly it follows the images before. In BAGEL: cfg_img_scale."],
  ["image.renorm", "What keeps guidance from over-saturating. In BAGEL: cfg_renorm_type.", ["global", "channel", "text_channel"]],
  ["image.renorm_min", "Smallest factor of the renormalisation. In BAGEL: cfg_renorm_min."],
];
const REFINE = ["num_timesteps", "text_scale", "image_scale"];

export class SettingsForm {
  constructor(node, defaults) {
    this.defaults = defaults;
    this.inputs = new Map();
    const all = [...FIELDS, ...REFINE.map((name) => [`refine.${name}`, `Of refinements alone; empty: as image.${name}.`])];
    for (const [name, help, options] of all.filter(([name]) => name in defaults || name.startsWith("refine."))) {
      const id = `setting-${name}`;
      const value = defaults[name] ?? "";
      const input = options ? element("select", { id }, ...options.map((one) => element("option", {}, one))) :
        element("input", { id, type: "number", step: "any" });
      input.value = value;
      input.setAttribute("aria-describedby", `${id}-help`);
      this.inputs.set(name, input);
      node.append(element("div", {}, element("label", { for: id }, name), input, element("p", { id: `${id}-help` }, help)));
    }
  }

  /** Return the settings that differ from the defaults. */
  read() {
    const changes = {};
    for (const [name, input] of this.inputs) {
      const value = input.type === "number" ? (input.value === "" ? undefined : Number(input.value)) : input.value;
      if (value !== undefined && value !== this.defaults[name]) changes[name] = value;
    }
    return changes;
  }
}
