// The pictures of a request: chosen or dropped; a frame shows what the clip will keep of each.

import { element } from "./fields.js";

const ACCEPT = "image/jpeg,image/png,image/webp,image/gif,image/tiff,image/bmp,image/avif,image/heic,.heic,.avif";
const TITLES = { image: "First picture", last_image: "Last picture" };
const chosen = {};

export const files = () => chosen;

let pickers = {};

// An example's pictures, as if somebody had chosen them.
export function choose(name, file) {
  if (pickers[name]) pickers[name].take(file);
}

function showCrop(frame, image, aspect, mode) {
  const shown = image.naturalWidth / image.naturalHeight;
  frame.hidden = mode !== "crop" || !image.naturalWidth || Math.abs(shown / aspect - 1) < 0.01;
  if (frame.hidden) return;
  const width = shown > aspect ? aspect / shown : 1;
  const height = shown > aspect ? 1 : shown / aspect;
  const box = image.getBoundingClientRect();
  const outer = frame.parentElement.getBoundingClientRect();
  frame.style.width = `${width * box.width}px`;
  frame.style.height = `${height * box.height}px`;
  frame.style.left = `${box.left - outer.left + ((1 - width) / 2) * box.width}px`;
  frame.style.top = `${box.top - outer.top + ((1 - height) / 2) * box.height}px`;
}

function picker(name, only, size) {
  const input = element("input", { type: "file", accept: ACCEPT, id: `f-${name}`, "aria-label": TITLES[name] || name, "aria-describedby": `p-${name}` });
  const image = element("img", { alt: `The chosen picture (${name})`, hidden: true });
  const frame = element("span", { class: "crop", "aria-hidden": true, hidden: true });
  const hint = element("span", { class: "hint" }, element("strong", {}, only ? "Choose a picture" : TITLES[name]), " or drop one here");
  const drop = element("label", { class: "drop" }, input, image, frame, hint);
  const place = () => showCrop(frame, image, size().aspect, size().mode);
  const take = (file) => {
    chosen[name] = file;
    if (image.src) URL.revokeObjectURL(image.src);
    image.hidden = !file;
    hint.hidden = Boolean(file);
    if (file) image.src = URL.createObjectURL(file);
  };
  image.addEventListener("load", place);
  image.addEventListener("error", () => { image.hidden = true; hint.hidden = false; hint.textContent = `${chosen[name] ? chosen[name].name : "this file"}: no preview here`; });
  input.addEventListener("change", () => take(input.files[0]));
  for (const event of ["dragenter", "dragover"]) drop.addEventListener(event, () => drop.classList.add("over"));
  for (const event of ["dragleave", "drop"]) drop.addEventListener(event, () => drop.classList.remove("over"));
  return { part: element("div", { class: "picture" }, drop, element("small", { class: "problem", id: `p-${name}`, hidden: true })), place, take };
}

// One picker for each picture of the task; returns what places the crop frames anew.
export function drawPictures(names, holder, size) {
  pickers = Object.fromEntries(names.map((name) => [name, picker(name, names.length === 1, size)]));
  for (const name of Object.keys(chosen)) if (!names.includes(name)) delete chosen[name];
  holder.replaceChildren(...Object.values(pickers).map((one) => one.part));
  for (const name of names) if (chosen[name]) pickers[name].take(chosen[name]);
  return () => Object.values(pickers).forEach((one) => one.place());
}
