// The service at a glance: engine, queue, models, and (where the key may) API keys and counts.

import { call, send } from "./api.js";
import { element } from "./fields.js";

const holder = document.getElementById("admin");

const row = (tag, cells) => element("tr", {}, ...cells.map((cell, index) => element(index || tag === "th" ? tag : "th", tag === "th" ? { scope: "col" } : index ? {} : { scope: "row" }, String(cell ?? ""))));

function table(title, head, rows) {
  const parts = [element("caption", {}, title)];
  if (head) parts.push(element("thead", {}, row("th", head)));
  parts.push(element("tbody", {}, ...rows.map((cells) => row("td", cells))));
  // A table that is wider than a phone scrolls by itself, by keyboard too.
  return element("div", { class: "scrolls", tabindex: 0, role: "region", "aria-label": title }, element("table", {}, ...parts));
}

// Prometheus' text format, without histograms' buckets and without times of creation.
function readMetrics(text) {
  const lines = text.split("\n").filter((line) => line.startsWith("stillmotion_") && !line.includes("_bucket") && !line.includes("_created"));
  return lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]);
}

const counted = (metrics, name) => metrics.find(([key]) => key === name)?.[1];
const day = (seconds) => (seconds ? new Date(seconds * 1000).toISOString().slice(0, 10) : "");
const limit = (value) => value ?? "no limit";

function overview(health, metrics) {
  const rows = [["State", health.detail || health.status]];
  if (metrics.length) {
    rows.push(["Jobs waiting", counted(metrics, 'stillmotion_queue_jobs{status="queued"}') ?? 0]);
    rows.push(["Jobs running", counted(metrics, 'stillmotion_queue_jobs{status="in_progress"}') ?? 0]);
    rows.push(["The oldest waits", `${Math.round(counted(metrics, "stillmotion_queue_age_seconds") ?? 0)} s`]);
    rows.push(["Jobs the engine takes at once", counted(metrics, "stillmotion_engine_capacity") ?? ""]);
  }
  return table("Engine and queue", null, rows);
}

function modelsTable(models) {
  const rows = models.map((one) => [one.id, one.task, `${one.width}×${one.height}`, one.num_frames.join(" or "), one.version, one.loras.map((lora) => lora.id).join(", ")]);
  return table("Models", ["Model", "Task", "Size", "Frames", "Version", "Adapters"], rows);
}

function keysTable(keys) {
  if (!keys.length) return element("p", {}, "No API keys: anybody who reaches this service may use it.");
  const rows = keys.map((key) => [key.name, key.weight, limit(key.per_minute), limit(key.max_jobs), key.operator ? "yes" : "no", day(key.created_at), day(key.revoked_at)]);
  return table("API keys", ["Name", "Weight", "A minute", "Jobs", "Operator", "Created", "Revoked"], rows);
}

export async function draw() {
  const health = await call("/health").catch((error) => ({ status: error.message }));
  const models = await call("/models").catch(() => ({ data: [] }));
  let metrics = [];
  const parts = [];
  try {
    metrics = readMetrics(await (await send("/metrics")).text());
    parts.push(keysTable((await call("/keys")).data));
    parts.push(element("details", {}, element("summary", {}, "All counts"), table("Counts", null, metrics)));
  } catch (error) {
    parts.push(element("p", {}, error.status === 403 ? "Queue, keys and counts need an operator's key." : error.message));
  }
  holder.replaceChildren(overview(health, metrics), modelsTable(models.data), ...parts);
}
