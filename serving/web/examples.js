// Examples of each task: a click fills the form and starts the job. The pictures' licences stand in NOTICE.

import { element } from "./fields.js";

const EXAMPLES = {
  "image-to-video": [
    { title: "A film's frame", pictures: { image: "example.jpg" } },
    { title: "Mountains", pictures: { image: "example-mountains.jpg" } },
    { title: "Dandelions", pictures: { image: "example-dandelions.jpg" } },
  ],
  "text-to-video": [
    { title: "A green meadow in bright light, the camera pans left", params: { prompt: "a green meadow in bright light, the camera pans left" } },
    { title: "A dark blue night, the camera zooms in", params: { prompt: "a dark blue night, the camera zooms in" } },
  ],
  "frame-interpolation": [
    { title: "From one view of mountains to the next", pictures: { image: "example-mountains.jpg", last_image: "example-mountains-right.jpg" } },
  ],
  "multi-view": [
    { title: "Three shapes on white", pictures: { image: "example-object.jpg" }, params: { elevation: 15 } },
  ],
};

async function fetchFiles(pictures) {
  const files = {};
  for (const [name, file] of Object.entries(pictures || {})) {
    const data = await (await fetch(`/web/${file}`)).blob();
    files[name] = new File([data], file, { type: "image/jpeg" });
  }
  return files;
}

// `start` gets an example's files and parameters.
export function drawExamples(task, holder, start) {
  const tiles = (EXAMPLES[task] || []).map((example) => {
    const images = Object.values(example.pictures || {}).map((file) => element("img", { src: `/web/${file}`, alt: "", width: 120, height: 80 }));
    const tile = element("button", { type: "button", class: "tile" }, ...images, element("span", {}, example.title));
    tile.addEventListener("click", async () => start(await fetchFiles(example.pictures), example.params || {}));
    return tile;
  });
  holder.replaceChildren(...tiles);
  holder.parentElement.hidden = !tiles.length;
}
