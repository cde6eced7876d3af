// The service at a glance: what /health, /models and (where the key may) /metrics say.

import { call, send } from "./api.js";
import { element } from "./fields.js";

const holder = document.getElementById("admin");

const table = (title, rows) => element(
  "table", {}, element("caption", {}, title),
  element("tbody", {}, ...rows.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, String(value))))),
);

// Prometheus' text format, without histograms' buckets.
function readMetrics(text) {
  const lines = text.split("\n").filter((line) => line && !line.startsWith("#") && !line.includes("_bucket"));
  return lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))])
    .filter(([name]) => name.startsWith("stillmotion_") && !name.includes("_created"));
}

export async function draw() {
  const parts = [];
  const ready = await call("/health/ready").catch((error) => ({ status: error.message }));
  const models = await call("/models").catch(() => ({ data: [] }));
  parts.push(table("Engine", [["state", ready.status], ["models", models.data.length]]));
  parts.push(table("Models", models.data.map((one) => [one.id, `${one.task}, ${one.width}×${one.height}, ${one.num_frames.join(" or ")} frames, version ${one.version}`])));
  const metrics = await send("/metrics").then((answer) => answer.text()).catch((error) => error);
  if (metrics instanceof Error) parts.push(element("p", {}, metrics.status === 403 ? "Counts are an operator's: this key may not read them." : metrics.message));
  else parts.push(table("Counts", readMetrics(metrics)));
  holder.replaceChildren(...parts);
}
