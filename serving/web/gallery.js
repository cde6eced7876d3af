// Past jobs, newest first: a thumbnail each, marked ones side by side.

import { call, fileUrl } from "./api.js";
import { element } from "./fields.js";

const PAGE = 12;
const list = document.getElementById("jobs");
const marked = new Map();
let last = null;
let openJob = () => {};

const IN_WORDS = { queued: "waiting", in_progress: "in progress", completed: "done" };

function card(job) {
  const image = element("img", { alt: "", hidden: true });
  if (job.status === "completed") {
    fileUrl(`${job.urls.content}?variant=thumbnail`).then((url) => { image.src = url; image.hidden = false; }, () => {});
  }
  const name = `${job.task}, ${IN_WORDS[job.status] || job.status}, seed ${job.seed}`;
  const open = element("button", { type: "button", class: "card-open", "aria-label": name }, image, element("span", {}, name));
  open.addEventListener("click", () => openJob(job.id));
  const parts = [open];
  if (job.status === "completed") {
    const mark = element("input", { type: "checkbox", "aria-label": `Mark seed ${job.seed} to compare`, checked: marked.has(job.id) });
    mark.addEventListener("change", () => {
      if (mark.checked) marked.set(job.id, job); else marked.delete(job.id);
      document.getElementById("compare-go").disabled = marked.size < 2;
    });
    parts.push(element("label", { class: "check" }, mark, " compare"));
  }
  return element("li", { id: `job-${job.id}`, class: job.status }, ...parts);
}

export async function refresh(more = false) {
  const after = more && last ? `&after=${encodeURIComponent(last)}` : "";
  const page = await call(`/jobs?order=desc&limit=${PAGE}${after}`);
  last = page.last_id;
  document.getElementById("older").hidden = !page.has_more;
  if (!more) list.replaceChildren();
  list.append(...page.data.map(card));
  if (!list.children.length) list.append(element("li", { class: "none" }, "No jobs yet."));
}

// What differs between the jobs, in a line each.
function differences(jobs) {
  const names = Object.keys(jobs[0].params).filter((name) => new Set(jobs.map((job) => JSON.stringify(job.params[name]))).size > 1);
  return (job) => names.map((name) => `${name} ${job.params[name]}`).join(", ") || `seed ${job.seed}`;
}

async function compare(show) {
  const jobs = [...marked.values()];
  const tell = differences(jobs);
  const videos = [];
  const cells = await Promise.all(jobs.map(async (job) => {
    const url = await fileUrl(job.urls.content);
    const isGif = job.params.output_format === "gif";
    const clip = isGif ? element("img", { src: url, alt: tell(job) }) : element("video", { src: url, loop: true, muted: true, playsinline: true, controls: true });
    if (!isGif) { clip.muted = true; videos.push(clip); }
    return element("figure", {}, clip, element("figcaption", {}, tell(job)));
  }));
  document.getElementById("compare").replaceChildren(...cells);
  show("compare");
  for (const video of videos) { video.currentTime = 0; video.play().catch(() => {}); }
}

export function begin({ open, show, complain }) {
  openJob = open;
  document.getElementById("older").addEventListener("click", () => refresh(true).catch((error) => complain(error.message)));
  document.getElementById("compare-go").addEventListener("click", () => compare(show).catch((error) => complain(error.message)));
}
