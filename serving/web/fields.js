// The form's fields, made from a task's schema in the OpenAPI document: what matters first, the rest under "More".

const MAIN = ["prompt", "motion_bucket_id", "elevation", "seed"];
const GROUPS = {
  Sampling: ["num_inference_steps", "min_guidance_scale", "max_guidance_scale", "noise_aug_strength", "solver", "schedule"],
  "Frames and size": ["num_frames", "fps", "interpolate", "upscale", "upscaler", "width", "height", "resize_mode", "decode_chunk_size"],
  Adapter: ["lora", "lora_scale"],
  Output: ["output_format", "priority"],
};
const HIDDEN = ["model", "previews", "reuse", "webhook", "metadata", "deadline_s", "stages"];
const SLIDERS = { motion_bucket_id: [1, 255], fps: [1, 30], num_inference_steps: [1, 50], elevation: [-90, 90] };
const LABELS = {
  motion_bucket_id: "Motion", fps: "Frames a second", num_inference_steps: "Steps", seed: "Seed", prompt: "Prompt",
  min_guidance_scale: "Guidance, first frame", max_guidance_scale: "Guidance, last frame", num_frames: "Frames",
  noise_aug_strength: "Noise on the picture", resize_mode: "Fit of the picture", output_format: "File format",
  lora: "Adapter (LoRA)", lora_scale: "Adapter's strength", interpolate: "Four times the frame rate",
  decode_chunk_size: "Frames decoded at once", upscale: "Enlargement", upscaler: "Enlarged by",
};
const HINTS = { num_inference_steps: "more steps take longer" };
const MOTION = [[25, "hardly anything moves"], [80, "little moves"], [160, "moves"], [220, "moves a lot"], [255, "moves very much"]];

const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
};

export { element };

export const inWords = (bucket) => MOTION.find(([upTo]) => bucket <= upTo)[1];

const label = (name) => LABELS[name] || (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");

// A property's own schema, references followed, `null` left out.
function plain(schema, document) {
  let found = schema;
  const rest = { ...schema };
  const choices = schema.anyOf || schema.oneOf || schema.allOf;
  if (choices) found = choices.find((one) => one.type !== "null") || {};
  if (found.$ref) found = found.$ref.slice(2).split("/").reduce((node, part) => node[part], document);
  return { ...rest, ...found, description: schema.description || found.description };
}

export function schemaOf(task, document) {
  const name = `${task.split("-").map((word) => word[0].toUpperCase() + word.slice(1)).join("")}Form`;
  const schema = document.components.schemas[name];
  const pictures = Object.keys(schema.properties).filter((field) => schema.properties[field].format === "binary");
  const fields = {};
  for (const [field, property] of Object.entries(schema.properties)) {
    if (!pictures.includes(field) && !HIDDEN.includes(field)) fields[field] = plain(property, document);
  }
  return { pictures, fields };
}

function control(name, schema, model) {
  const value = model.defaults[name] ?? schema.default ?? "";
  const id = `f-${name}`;
  if (name === "prompt") return element("textarea", { id, name, rows: 3, maxlength: schema.maxLength, required: true });
  if (name === "lora") {
    const options = (model.loras || []).map((lora) => element("option", { value: lora.id }, lora.id));
    return element("select", { id, name }, element("option", { value: "" }, "none"), ...options);
  }
  if (schema.enum) {
    const options = schema.enum.map((one) => element("option", { value: one, selected: one === value }, one));
    return element("select", { id, name }, ...options);
  }
  if (schema.type === "boolean" || name === "interpolate") return element("input", { id, name, type: "checkbox", value: "true" });
  if (name in SLIDERS) {
    const [min, max] = SLIDERS[name];
    return element("input", { id, name, type: "range", min, max, value: value === "" ? (min + max) / 2 : value });
  }
  if (schema.type === "integer" || schema.type === "number") {
    const step = schema.type === "integer" ? 1 : "any";
    const max = name === "seed" ? Number.MAX_SAFE_INTEGER : schema.maximum ?? null;
    const hint = value === "" ? "default" : value;
    return element("input", { id, name, type: "number", min: schema.minimum ?? null, max, step, placeholder: name === "seed" ? "random" : hint });
  }
  return element("input", { id, name, type: "text", maxlength: schema.maxLength ?? null });
}

function seedTools(input) {
  const dice = element("button", { type: "button", class: "quiet small", title: "Draw a new seed" }, "Dice");
  dice.addEventListener("click", () => { input.value = String(crypto.getRandomValues(new Uint32Array(1))[0]); });
  const lock = element("label", { class: "check" }, element("input", { type: "checkbox", id: "seed-lock" }), " keep");
  return element("span", { class: "seed" }, input, dice, lock);
}

function fieldFor(name, schema, model) {
  const input = control(name, schema, model);
  const problem = element("small", { class: "problem", id: `p-${name}`, hidden: true });
  input.setAttribute("aria-describedby", problem.id);
  const title = element("label", { for: input.id }, label(name));
  const hint = HINTS[name] || (["number", "text", "textarea"].includes(input.type) && name !== "seed" ? schema.description : null);
  const parts = [title];
  if (input.type === "range") {
    const output = element("output", { for: input.id });
    const show = () => { output.textContent = name === "motion_bucket_id" ? `${input.value}: ${inWords(Number(input.value))}` : input.value; };
    input.addEventListener("input", show);
    input.addEventListener("refresh", show);
    show();
    parts.push(output);
  }
  parts.push(name === "seed" ? seedTools(input) : input);
  if (hint) parts.push(element("small", {}, hint));
  parts.push(problem);
  return element("div", { class: `field ${input.type === "range" ? "slider" : ""} ${input.type === "checkbox" ? "check" : ""} ${name === "seed" ? "wide" : ""}` }, ...parts);
}

// Put the task's fields into the two places; returns their names.
export function drawFields(schema, model, main, more) {
  const names = Object.keys(schema.fields);
  const has = (name) => names.includes(name) && !(name.startsWith("lora") && !(model.loras || []).length);
  const draw = (group) => group.map((name) => fieldFor(name, schema.fields[name], model));
  const first = MAIN.filter(has);
  const grouped = [...MAIN, ...Object.values(GROUPS).flat()];
  const groups = Object.entries({ ...GROUPS, Other: names.filter((name) => !grouped.includes(name)) })
    .map(([title, group]) => [title, group.filter(has)]).filter(([, group]) => group.length);
  main.replaceChildren(...draw(first));
  more.replaceChildren(...groups.map(([title, group]) => element("fieldset", {}, element("legend", {}, title), ...draw(group))));
  return [...first, ...groups.flatMap(([, group]) => group)];
}

// Values of a job or a manifest into the form.
export function fill(names, params) {
  for (const name of names) {
    const input = document.getElementById(`f-${name}`);
    const value = params[name];
    if (!input || value === undefined || value === null) continue;
    if (input.type === "checkbox") input.checked = Boolean(value);
    else input.value = typeof value === "object" ? "" : String(value);
    input.dispatchEvent(new Event("refresh"));
  }
}

// What the form says, less what is empty; `defaults` are left out, so that a checkpoint's own stay in force.
export function values(names, defaults) {
  const found = {};
  for (const name of names) {
    const input = document.getElementById(`f-${name}`);
    const value = input.type === "checkbox" ? (input.checked ? "true" : "") : input.value.trim();
    if (value !== "" && String(defaults[name] ?? "") !== value) found[name] = value;
  }
  return found;
}

export function complain(message, param) {
  for (const one of document.querySelectorAll("[id^=p-]")) one.hidden = true;
  const beside = param ? document.getElementById(`p-${param.split(".")[0]}`) : null;
  const general = document.getElementById("problem");
  const place = beside || general;
  general.hidden = true;
  place.textContent = message;
  place.hidden = !message;
  if (beside && message) {
    const more = beside.closest("details");
    if (more) more.open = true;
    const input = document.getElementById(`f-${param}`) || beside.parentElement.querySelector("input");
    if (input) input.focus();
  }
}
