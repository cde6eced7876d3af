// Calls of the service: the key is sent in a header, an error answer becomes an ApiError that names the field at fault.

export class ApiError extends Error {
  constructor(status, body, fallback) {
    super(body && body.error ? body.error.message : fallback);
    this.status = status;
    this.param = body && body.error ? body.error.param : null;
    this.code = body && body.error ? body.error.code : null;
  }
}

const KEY = "stillmotion-key";

// The key stays in this tab: it goes when the tab is closed.
export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => sessionStorage.setItem(KEY, value.trim()),
};

export async function send(path, options = {}) {
  const authorization = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  const response = await fetch(path, { ...options, headers: { ...authorization, ...options.headers } });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new ApiError(response.status, body, response.statusText || `status ${response.status}`);
}

export const call = async (path, options) => (await send(path, options)).json();

// A file as a link: fetched here, since a link or a <video> cannot send the key.
export const fileUrl = async (path) => URL.createObjectURL(await (await send(path)).blob());

export const wait = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

// One connection's server-sent events; EventSource would do, but cannot send the key.
async function readEvents(job, state, onEvent) {
  const response = await send(job.urls.events, { headers: { "Last-Event-ID": String(state.id) } });
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
      state.id = event.id;
      state.job = event.job;
      onEvent(event);
    }
  }
}

export const ENDED = ["completed", "failed", "cancelled", "expired"];

// Follow a job to its end through lost connections and restarts of the server, backing off; returns the ended job.
export async function follow(job, { onEvent, onLost, signal }) {
  const state = { id: 0, job };
  for (let failures = 0; !ENDED.includes(state.job.status) && !signal.aborted; ) {
    const before = state.id;
    try {
      await readEvents(job, state, (event) => signal.aborted || onEvent(event));
    } catch (error) {
      // fetch throws a TypeError when the connection is lost; a starting or stopping server answers 503
      if (!(error instanceof TypeError) && error.status !== 503) throw error;
    }
    failures = state.id > before ? 0 : failures + 1;
    if (ENDED.includes(state.job.status) || signal.aborted) break;
    const pause = Math.min(15, 2 ** (failures - 1));
    if (failures > 1) onLost(pause);
    await wait(failures ? pause : 0.2);
  }
  return state.job;
}
