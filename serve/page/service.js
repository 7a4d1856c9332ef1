// Asking the service: calls, uploads, streams; the key is kept until the tab is closed.

export const KEY = "toolmm.key";
let controller = null; // of what runs now

export class ServiceError extends Error {}
export class Stopped extends Error {}

export function begin() {
  controller = new AbortController();
}

export function stop() {
  controller?.abort();
}

export async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem(KEY);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal: controller?.signal });
  } catch (error) {
    throw explain(error);
  }
  if (response.status === 401) {
    await askForKey();
    return call(path, options);
  }
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new ServiceError(told?.error?.message ?? `The service answered with status ${response.status}.`);
  }
  return response;
}

const explain = (error) => error.name === "AbortError"
  ? new Stopped()
  : new ServiceError("The service does not answer. Is it running? Try again in a moment.");

const send = (path, body) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const get = async (path) => (await call(path)).json();
export const post = async (path, body) => (await send(path, body)).json();

// The data of server-sent events, parsed, as they come.
export async function* stream(path, body) {
  const reader = (await send(path, body)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw explain(error);
    }
    if (part.done) return;
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue; // a comment that keeps the connection open
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServiceError(event.error.message);
      yield event;
    }
  }
}

export async function upload(file) {
  const form = new FormData();
  form.append("file", file, file.name || "recording");
  return (await call("/v1/artifacts", { method: "POST", body: form })).json();
}

function askForKey() {
  const dialog = document.getElementById("key-dialog");
  const field = document.getElementById("key");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => { sessionStorage.setItem(KEY, field.value.trim()); resolve(); }, { once: true });
  });
}
