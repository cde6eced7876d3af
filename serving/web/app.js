// The playground: one form, one job at a time, followed through its server-sent events.
"use strict";

const $ = (id) => document.getElementById(id);
const SLIDERS = ["motion_bucket_id", "fps", "num_inference_steps"];
const EVENTS = ["queued", "phase", "step", "decode", "completed", "failed", "cancelled", "expired"];
const PHASES = { encode: "Reading the picture", denoise: "Sampling", decode: "Decoding frames", mux: "Writing the video" };
let models = [];
let current = null;

function show(view) {
  for (const id of ["empty", "running", "result"]) $(id).hidden = id !== view;
}

function setBusy(busy) {
  $("go").disabled = busy;
  $("stop").hidden = !busy;
  $("stop").disabled = false;
}

function complain(message) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}

async function call(path, options) {
  const response = await fetch(path, options);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error ? body.error.message : response.statusText);
  return body;
}

function showSlider(id) {
  document.querySelector(`output[for=${id}]`).textContent = $(id).value;
}

function takeDefaults() {
  const model = models.find((entry) => entry.id === $("model").value);
  for (const id of SLIDERS) {
    if (model && model.defaults[id] !== undefined) $(id).value = model.defaults[id];
    showSlider(id);
  }
}

function preview() {
  const file = $("image").files[0];
  if ($("preview").src) URL.revokeObjectURL($("preview").src);
  $("preview").hidden = !file;
  $("hint").hidden = Boolean(file);
  if (file) $("preview").src = URL.createObjectURL(file);
}

function describe(job) {
  if (job.status === "queued") return job.queue_position ? `Waiting, ${job.queue_position} ahead` : "Waiting";
  if (job.phase === "denoise") return `Sampling, step ${job.step} of ${job.total_steps}`;
  return PHASES[job.phase] || "Starting";
}

function follow(job) {
  const source = new EventSource(job.urls.events);
  const update = (message) => {
    const now = JSON.parse(message.data).job;
    $("progress").value = now.progress;
    $("phase").textContent = describe(now);
    $("eta").textContent = now.eta_s === null ? "" : `about ${Math.ceil(now.eta_s)} s left`;
    if (["queued", "in_progress"].includes(now.status)) return;
    source.close();
    finish(now);
  };
  for (const name of EVENTS) source.addEventListener(name, update);
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) {
      setBusy(false);
      complain("The connection to the server was lost.");
    }
  };
}

function finish(job) {
  setBusy(false);
  current = null;
  if (job.status !== "completed") {
    show("empty");
    complain(job.status === "cancelled" ? "Cancelled." : job.error ? job.error.message : `The job is ${job.status}.`);
    return;
  }
  const isGif = job.params.output_format === "gif";
  $("video").hidden = isGif;
  $("clip").hidden = !isGif;
  $(isGif ? "clip" : "video").src = job.urls.content;
  $("download").href = job.urls.content;
  $("download").download = `${job.id}.${job.params.output_format}`;
  $("sheet").href = `${job.urls.content}?variant=frames`;
  $("manifest").href = `${job.urls.content}?variant=manifest`;
  const out = job.output;
  const took = Math.round(job.completed_at - job.started_at);
  $("facts").textContent = `${out.width}×${out.height}, ${out.num_frames} frames, seed ${job.seed}, ${took} s`;
  show("result");
}

async function submit(event) {
  event.preventDefault();
  complain("");
  const form = new FormData($("form"));
  if (!form.get("seed")) form.delete("seed");
  setBusy(true);
  try {
    current = await call("/generate/image-to-video", { method: "POST", body: form });
    $("progress").value = 0;
    $("phase").textContent = describe(current);
    $("eta").textContent = "";
    show("running");
    follow(current);
  } catch (error) {
    setBusy(false);
    complain(error.message);
  }
}

async function stop() {
  if (!current) return;
  $("stop").disabled = true;
  try {
    await call(current.urls.cancel, { method: "POST" });
  } catch (error) {
    complain(error.message);
  }
}

async function begin() {
  for (const id of SLIDERS) $(id).addEventListener("input", () => showSlider(id));
  $("model").addEventListener("change", takeDefaults);
  $("image").addEventListener("change", preview);
  $("form").addEventListener("submit", submit);
  $("stop").addEventListener("click", stop);
  for (const name of ["dragenter", "dragover"]) $("drop").addEventListener(name, () => $("drop").classList.add("over"));
  for (const name of ["dragleave", "drop"]) $("drop").addEventListener(name, () => $("drop").classList.remove("over"));
  try {
    models = (await call("/models")).data.filter((entry) => entry.task === "image-to-video");
    for (const entry of models) $("model").add(new Option(`${entry.id} (${entry.width}×${entry.height})`, entry.id));
  } catch (error) {
    complain(error.message);
  }
  takeDefaults();
}

begin();
