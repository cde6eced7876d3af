// The playground: a form made from the tasks' schemas, a job followed to its end, and the jobs before it.

import { ApiError, ENDED, call, fileUrl, follow, key, wait } from "./api.js";
import * as admin from "./admin.js";
import { complain, drawFields, element, fill, schemaOf, values } from "./fields.js";
import { drawExamples } from "./examples.js";
import * as gallery from "./gallery.js";
import { manifestIn, readable } from "./manifest.js";
import { choose, drawPictures, files } from "./pictures.js";
import { asCurl, asPython } from "./snippets.js";

const $ = (id) => document.getElementById(id);
const PHASES = { encode: "Reading the picture", decode: "Decoding frames", mux: "Writing the video" };
const TITLES = {
  "image-to-video": "Image to video", "text-to-video": "Text to video",
  "frame-interpolation": "Between two pictures", "multi-view": "Around an object",
};
const VIEWS = ["empty", "running", "result", "compare", "admin"];
const state = { models: [], document: null, task: null, schema: null, names: [], job: null, follower: null, urls: [], place: () => {} };

function show(view) {
  for (const id of VIEWS) $(id).hidden = id !== view;
}

const model = () => state.models.find((one) => one.id === $("model").value);

// ---- the form ----

// In the order of TITLES; what is not known there comes last.
function servedTasks() {
  const order = Object.keys(TITLES);
  const place = (task) => (order.includes(task) ? order.indexOf(task) : order.length);
  return [...new Set(state.models.map((one) => one.task))].sort((a, b) => place(a) - place(b));
}

function drawTasks() {
  const tasks = servedTasks();
  const tabs = tasks.map((task) => element(
    "button", { type: "button", role: "tab", id: `tab-${task}`, "aria-selected": String(task === state.task), tabindex: task === state.task ? 0 : -1 },
    TITLES[task] || task,
  ));
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => chooseTask(tasks[index]));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tasks[(index + step + tasks.length) % tasks.length];
      chooseTask(next);
      $(`tab-${next}`).focus();
    });
  });
  $("tasks").replaceChildren(...tabs);
}

function chooseTask(task, modelId) {
  state.task = task;
  drawTasks();
  const fitting = state.models.filter((one) => one.task === task);
  $("model").replaceChildren(...fitting.map((one) => new Option(`${one.id} (${one.width}×${one.height})`, one.id)));
  if (modelId && fitting.some((one) => one.id === modelId)) $("model").value = modelId;
  state.schema = schemaOf(task, state.document);
  state.place = drawPictures(state.schema.pictures, $("pictures"), clipSize);
  drawExamples(task, $("example-tiles"), startExample);
  drawModel();
}

function drawModel() {
  state.names = drawFields(state.schema, model(), $("main-fields"), $("more-fields"));
  for (const name of ["resize_mode", "width", "height"]) {
    const input = $(`f-${name}`);
    if (input) input.addEventListener("input", () => state.place());
  }
  state.place();
  complain("");
}

function clipSize() {
  const number = (name, fallback) => Number(($(`f-${name}`) || {}).value) || fallback;
  const width = number("width", model().width);
  const height = number("height", model().height);
  const mode = $("f-resize_mode") ? $("f-resize_mode").value : "crop";
  return { aspect: width / height, mode };
}

function request() {
  const fields = { model: model().id, ...values(state.names, model().defaults) };
  if (model().previews) fields.previews = "true";
  return fields;
}

// ---- one job ----

function describe(job) {
  if (job.status === "queued") return job.queue_position ? `Waiting, ${job.queue_position} ahead` : "Waiting";
  if (job.phase === "denoise") return `Sampling, step ${job.step} of ${job.total_steps}`;
  if (job.phase === "interpolate") return `Making the frames between, step ${job.step} of ${job.total_steps}`;
  if (job.phase === "extend") return `Making the clip longer, step ${job.step} of ${job.total_steps}`;
  if (job.phase === "upscale") return "Making the frames larger";
  return PHASES[job.phase] || "Starting";
}

const timeInWords = (seconds) => (seconds < 100 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`);

function update(event) {
  const job = event.job;
  $("progress").value = job.progress;
  $("phase").textContent = describe(job);
  $("eta").textContent = job.eta_s === null ? "" : `about ${timeInWords(job.eta_s)} left`;
  document.title = ENDED.includes(job.status) ? "Stillmotion playground" : `${job.progress}% Stillmotion`;
  if (event.preview && event.preview.data) {
    $("coming").src = `data:image/jpeg;base64,${event.preview.data}`;
    $("coming").hidden = false;
  }
}

function release() {
  if (state.follower) state.follower.abort();
  for (const url of state.urls.splice(0)) URL.revokeObjectURL(url);
}

async function keepUrl(path) {
  const url = await fileUrl(path);
  state.urls.push(url);
  return url;
}

async function watch(job) {
  release();
  state.job = job;
  location.hash = `job=${job.id}`;
  const follower = new AbortController();
  state.follower = follower;
  $("coming").hidden = true;
  $("stop").disabled = false;
  update({ job });
  show("running");
  const ended = await follow(job, {
    signal: follower.signal,
    onEvent: update,
    onLost: (pause) => { $("phase").textContent = `The connection is lost; trying again in ${pause} s`; },
  });
  if (follower.signal.aborted) return;
  state.job = ended;
  await finish(ended);
  await gallery.refresh();
}

async function finish(job) {
  if (job.status !== "completed") {
    show("empty");
    complain(job.status === "cancelled" ? "Cancelled." : job.error ? job.error.message : `The job is ${job.status}.`);
    return;
  }
  const isGif = job.params.output_format === "gif";
  const content = await keepUrl(job.urls.content);
  $("video").hidden = isGif;
  $("clip").hidden = !isGif;
  $(isGif ? "clip" : "video").src = content;
  $("download").href = content;
  $("download").download = `${job.id}.${job.params.output_format}`;
  $("sheet").href = await keepUrl(`${job.urls.content}?variant=frames`);
  $("permalink").href = `/#job=${job.id}`;
  $("manifest").hidden = true;
  const out = job.output;
  const took = job.started_at ? `, ${Math.round(job.completed_at - job.started_at)} s` : "";
  $("facts").textContent = `${out.width}×${out.height}, ${out.num_frames} frames, seed ${job.seed}${took}`;
  show("result");
}

async function submit(event) {
  event.preventDefault();
  complain("");
  const missing = state.schema.pictures.find((name) => !files()[name]);
  if (missing) { complain("Choose a picture first.", missing); return; }
  const form = new FormData();
  for (const name of state.schema.pictures) form.set(name, files()[name]);
  for (const [name, value] of Object.entries(request())) form.set(name, value);
  $("go").disabled = true;
  try {
    const job = await call(`/generate/${state.task}`, { method: "POST", body: form });
    const seed = $("f-seed");
    if ($("seed-lock") && $("seed-lock").checked) seed.value = String(job.seed);
    else if (seed) seed.value = "";
    $("go").disabled = false;
    $("stage").scrollIntoView({ block: "nearest" });
    await watch(job);
  } catch (error) {
    refuse(error);
  }
  $("go").disabled = false;
}

async function startExample(pictures, params) {
  for (const [name, file] of Object.entries(pictures)) choose(name, file);
  fill(state.names, params);
  $("form").requestSubmit();
}

function refuse(error) {
  if (error.status === 401) $("access").open = true;
  const words = error instanceof TypeError ? "The server does not answer." : error.message;
  complain(error.status === 401 ? "This service needs an API key: enter yours above." : words, error.param);
  if (!$("running").hidden) show("empty");
}

async function stop() {
  $("stop").disabled = true;
  try {
    await call(state.job.urls.cancel, { method: "POST" });
  } catch (error) {
    complain(error.message);
  }
}

async function open(id) {
  complain("");
  try {
    await watch(await call(`/jobs/${encodeURIComponent(id)}`));
  } catch (error) {
    refuse(error);
  }
}

const idInHash = () => new URLSearchParams(location.hash.slice(1)).get("job");

// ---- manifests ----

function takeOver(task, modelId, params) {
  if (!state.models.some((one) => one.task === task)) { complain(`No model of the task ${task} is served here.`); return; }
  chooseTask(task, modelId);
  fill(state.names, params);
  $("more").open = true;
}

function showManifest(manifest) {
  $("manifest").textContent = readable(manifest);
  $("manifest").hidden = false;
}

async function dropped(file) {
  const manifest = manifestIn(await file.arrayBuffer());
  if (!manifest) { complain("This file carries no manifest of Stillmotion."); return; }
  release();
  const url = URL.createObjectURL(file);
  state.urls.push(url);
  $("video").hidden = false;
  $("clip").hidden = true;
  $("video").src = url;
  $("download").href = url;
  $("download").download = file.name;
  $("facts").textContent = `${file.name}: ${manifest.model}, seed ${manifest.seed}`;
  show("result");
  showManifest(manifest);
  takeOver(manifest.task, manifest.model, { ...manifest.params, seed: manifest.seed });
}

// ---- start ----

async function load() {
  try {
    state.document = state.document || await call("/openapi.json");
    state.models = (await call("/models")).data;
    chooseTask(state.task || servedTasks()[0]);
    await gallery.refresh();
    return true;
  } catch (error) {
    refuse(error);
    return error instanceof ApiError;
  }
}

function inWords(health) {
  if (!health) return "The service does not answer.";
  if (health.status === "ready") return "A still, a prompt or two pictures become a short video.";
  return `The service is getting ready${health.detail ? `: ${health.detail}` : ""}. Jobs may be sent; they wait.`;
}

async function watchHealth() {
  for (let pause = 1; ; pause = Math.min(15, pause * 1.5)) {
    // A 200 in either state: a 503 would stand in the browser's console as an error.
    const health = await call("/health").catch(() => null);
    $("service").textContent = inWords(health);
    if (health && health.status === "ready") return;
    await wait(pause);
  }
}

function copy(make) {
  const text = make(state.task, Object.fromEntries(state.schema.pictures.map((name) => [name, files()[name] || { name: `${name}.jpg` }])), request(), Boolean(key.get()));
  navigator.clipboard.writeText(text).then(() => complain("Copied."), () => { $("manifest").textContent = text; $("manifest").hidden = false; show("result"); });
}

async function begin() {
  $("model").addEventListener("change", drawModel);
  $("form").addEventListener("submit", submit);
  $("stop").addEventListener("click", stop);
  $("copy-curl").addEventListener("click", () => copy(asCurl));
  $("copy-python").addEventListener("click", () => copy(asPython));
  $("reuse").addEventListener("click", () => state.job && takeOver(state.job.task, state.job.model, { ...state.job.params, seed: state.job.seed }));
  $("show-manifest").addEventListener("click", async () => {
    if (!$("manifest").hidden) { $("manifest").hidden = true; return; }
    if (state.job) showManifest(await call(`${state.job.urls.content}?variant=manifest`));
  });
  $("open-admin").addEventListener("click", () => { show("admin"); admin.draw().catch(refuse); });
  addEventListener("resize", () => state.place());
  addEventListener("hashchange", () => { const id = idInHash(); if (id && (!state.job || id !== state.job.id)) open(id); });
  for (const event of ["dragover", "drop"]) $("stage").addEventListener(event, (e) => e.preventDefault());
  $("stage").addEventListener("drop", (event) => { const file = event.dataTransfer.files[0]; if (file) dropped(file).catch(refuse); });
  $("key").value = key.get();
  $("key").addEventListener("change", () => { key.set($("key").value); load(); });
  gallery.begin({ open, show, complain });
  watchHealth();
  for (let pause = 1; !(await load()); pause = Math.min(15, pause * 2)) await wait(pause);
  const id = idInHash();
  if (id) await open(id);
}

begin();
