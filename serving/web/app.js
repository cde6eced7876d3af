// The playground: one form, one job at a time, followed through its server-sent events.
"use strict";

const $ = (id) => document.getElementById(id);
const SLIDERS = ["motion_bucket_id", "fps", "num_inference_steps"];
const ENDED = ["completed", "failed", "cancelled", "expired"];
const PHASES = { encode: "Reading the picture", denoise: "Sampling", decode: "Decoding frames", mux: "Writing the video" };
let models = [];
let current = null;
const files = [];

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

// The key stays in this tab: it is sent to this server in a header, and goes when the tab is closed.
function headers() {
  const key = $("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function send(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (response.ok) return response;
  const body = await response.json();
  if (response.status === 401) $("access").open = true;
  throw new Error(body.error ? body.error.message : response.statusText);
}

async function call(path, options) {
  return (await send(path, options)).json();
}

// A file as a link: fetched here, since a link or a <video> cannot send the key.
async function fileUrl(path) {
  const url = URL.createObjectURL(await (await send(path)).blob());
  files.push(url);
  return url;
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
  if (job.phase === "interpolate") return `Making the frames between, step ${job.step} of ${job.total_steps}`;
  return PHASES[job.phase] || "Starting";
}

function update(event) {
  const now = event.job;
  $("progress").value = now.progress;
  $("phase").textContent = describe(now);
  $("eta").textContent = now.eta_s === null ? "" : `about ${Math.ceil(now.eta_s)} s left`;
  if (event.preview && event.preview.data) {
    $("coming").src = `data:image/jpeg;base64,${event.preview.data}`;
    $("coming").hidden = false;
  }
}

// Read one connection's events; EventSource would do, but cannot send the key.
async function readEvents(job, seen) {
  const response = await send(job.urls.events, { headers: { "Last-Event-ID": String(seen.id) } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data: "));
      if (!data) continue;
      const event = JSON.parse(data.slice(6));
      seen.id = event.id;
      seen.job = event.job;
      update(event);
    }
  }
}

async function follow(job) {
  const seen = { id: 0, job };
  for (let broken = 0; !ENDED.includes(seen.job.status); ) {
    const before = seen.id;
    try {
      await readEvents(job, seen);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;  // what fetch throws when the connection is lost
    }
    broken = seen.id > before ? 0 : broken + 1;
    if (broken > 5) throw new Error("The connection to the server was lost.");
    if (!ENDED.includes(seen.job.status)) await new Promise((done) => setTimeout(done, 1000));
  }
  await finish(seen.job);
}

async function finish(job) {
  if (job.status !== "completed") {
    show("empty");
    complain(job.status === "cancelled" ? "Cancelled." : job.error ? job.error.message : `The job is ${job.status}.`);
    return;
  }
  const isGif = job.params.output_format === "gif";
  const content = await fileUrl(job.urls.content);
  $("video").hidden = isGif;
  $("clip").hidden = !isGif;
  $(isGif ? "clip" : "video").src = content;
  $("download").href = content;
  $("download").download = `${job.id}.${job.params.output_format}`;
  $("sheet").href = await fileUrl(`${job.urls.content}?variant=frames`);
  $("manifest").href = await fileUrl(`${job.urls.content}?variant=manifest`);
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
  const model = models.find((entry) => entry.id === form.get("model"));
  if (model && model.previews) form.set("previews", "true");
  setBusy(true);
  try {
    current = await call("/generate/image-to-video", { method: "POST", body: form });
    for (const url of files.splice(0)) URL.revokeObjectURL(url);
    $("progress").value = 0;
    $("phase").textContent = describe(current);
    $("eta").textContent = "";
    $("coming").hidden = true;
    show("running");
    await follow(current);
  } catch (error) {
    complain(error.message);
  }
  setBusy(false);
  current = null;
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
  $("key").value = sessionStorage.getItem("stillmotion-key") || "";
  $("key").addEventListener("change", () => {
    sessionStorage.setItem("stillmotion-key", $("key").value.trim());
    loadModels();
  });
  await loadModels();
}

async function loadModels() {
  complain("");
  try {
    models = (await call("/models")).data.filter((entry) => entry.task === "image-to-video");
    const options = models.map((entry) => new Option(`${entry.id} (${entry.width}×${entry.height})`, entry.id));
    $("model").replaceChildren(...options);
  } catch (error) {
    complain(error.message);
  }
  takeDefaults();
}

begin();
