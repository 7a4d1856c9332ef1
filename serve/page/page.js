// The page: a chat over this service's own routes. No library, no request to anywhere else.

const MODEL_ROUTE = "/v1/models";
const TOP = 5;
const find = (id) => document.getElementById(id);
const state = { key: "", model: "", file: null, recorder: null, recording: false, messages: [], busy: false };

// --- asking the service

class ServiceError extends Error {}

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (state.key) headers.set("Authorization", `Bearer ${state.key}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new ServiceError("The service does not answer. Is it running? Try again in a moment.");
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

const post = async (path, body) =>
  (await call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();

function askForKey() {
  const dialog = find("key-dialog");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => { state.key = find("key").value.trim(); resolve(); }, { once: true });
  });
}

async function upload(file) {
  const form = new FormData();
  form.append("file", file, file.name || "recording");
  return (await call("/v1/artifacts", { method: "POST", body: form })).json();
}

// --- showing things; texts go in as text, never as markup

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function say(who, words, kind = "") {
  const item = element("li", { class: `${who === "You" ? "user" : "service"} ${kind}` },
    element("p", { class: "who" }, who), element("p", { class: "words" }, words));
  find("chat").append(item);
  item.scrollIntoView({ block: "nearest" });
  return item;
}

function showMedium(blob, mediaType, label) {
  const source = URL.createObjectURL(blob);
  if (mediaType.startsWith("image/")) return element("img", { src: source, alt: label });
  if (mediaType.startsWith("audio/")) return element("audio", { src: source, controls: true, "aria-label": label });
  return element("video", { src: source, controls: true, playsinline: true, "aria-label": label });
}

async function showArtifact(item, artifact, label) {
  const response = await call(artifact.path);
  item.append(showMedium(await response.blob(), artifact.media_type, label));
}

function setBusy(isBusy, words = "") {
  state.busy = isBusy;
  find("send").disabled = isBusy;
  for (const button of document.querySelectorAll(".run")) button.disabled = isBusy;
  find("status").textContent = words;
}

async function guarded(words, work) {
  if (state.busy) return;
  setBusy(true, words);
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ServiceError)) console.error(error);
    say("Service", error instanceof ServiceError ? error.message : "Something went wrong on this page; try again.", "error");
  } finally {
    setBusy(false);
  }
}

// --- the model's choice

function showRanking(item, request, choice) {
  const token = choice.logprobs?.content?.[0];
  if (!token) return;
  const rows = token.top_logprobs.map(({ token: tool, logprob }) => {
    const share = Math.exp(logprob);
    const isNone = tool === "unknown";
    const label = isNone ? "none of the tools" : tool;
    return element("tr", { class: tool === token.token ? "chosen" : "" },
      element("th", { scope: "row" }, label),
      element("td", {}, element("meter", { min: 0, max: 1, value: share, "aria-label": `probability of ${label}` })),
      element("td", { class: "number" }, `${(100 * share).toFixed(1)} %`),
      element("td", {}, isNone ? "" : element("button", {
        type: "button", class: "run", "aria-label": `Run ${tool}`, onclick: () => run(request, tool),
      }, "Run")));
  });
  item.append(element("table", { class: "ranking" }, element("caption", {}, "What the model would use"), ...rows));
}

async function select(messages) {
  const request = { model: state.model, messages, logprobs: true, top_logprobs: TOP };
  const answer = await post("/v1/chat/completions", request);
  const choice = answer.choices[0];
  const called = choice.message.tool_calls?.[0];
  const item = say("Model", called ? `I would use ${called.function.name}.` : choice.message.content);
  showRanking(item, request, choice);
  state.messages.push({ role: "assistant", content: called ? `I would use ${called.function.name}.` : choice.message.content });
}

function run(request, tool) {
  return guarded(`${tool} is running …`, async () => {
    const named = { type: "function", function: { name: tool } };
    const answer = await post("/v1/chat/completions", { ...request, logprobs: null, top_logprobs: null, tool_choice: named });
    const called = answer.choices[0].message.tool_calls[0].function;
    const result = await post(`/v1/tools/${tool}/invoke`, { arguments: JSON.parse(called.arguments) });
    const item = say(tool, result.text || "Done.");
    if (result.artifact) await showArtifact(item, result.artifact, `result of ${tool}`);
    item.append(element("details", {}, element("summary", {}, "What was called"), element("pre", {}, `${tool}\n${called.arguments}`)));
  });
}

async function askAgent(messages) {
  const answer = await post("/v1/chat/completions", { model: state.model, messages, agent: true });
  const item = say("Agent", answer.choices[0].message.content);
  const steps = answer.agent?.steps ?? [];
  for (const step of steps) if (step.artifact) await showArtifact(item, step.artifact, `result of ${step.tool}`);
  const lines = steps.map((step) => element("li", {}, `${step.tool}: ${step.error ? step.text || step.observation : step.text || step.observation}`));
  item.append(element("details", { class: "trace" }, element("summary", {}, `Trace: ${steps.length} steps`), element("ol", {}, ...lines)));
  state.messages.push({ role: "assistant", content: answer.choices[0].message.content });
}

async function ask(words, file) {
  const item = say("You", words);
  const content = [{ type: "text", text: words }];
  if (file) {
    item.append(showMedium(file, file.type, "your file"));
    const artifact = await upload(file);
    const reference = `artifact:${artifact.id}`;
    if (artifact.media_type.startsWith("image/")) content.push({ type: "image_url", image_url: { url: reference } });
    else if (artifact.media_type.startsWith("audio/")) content.push({ type: "input_audio", input_audio: { data: reference, format: "wav" } });
    else content.push({ type: "video_url", video_url: { url: reference } });
  }
  const messages = [...state.messages, { role: "user", content }];
  await (find("agent").checked ? askAgent : select)(messages);
  state.messages.splice(state.messages.length - 1, 0, messages.at(-1));
}

// --- the form

function attach(file) {
  state.file = file;
  find("attachment").hidden = !file;
  find("preview").replaceChildren(...(file ? [showMedium(file, file.type, "attached file")] : []));
  if (!file) find("file").value = "";
}

async function toggleRecording(button) {
  if (state.recorder) {
    state.recorder.stop();
    return;
  }
  const kind = button.dataset.record;
  const label = button.textContent;
  const buttons = document.querySelectorAll("[data-record]");
  const release = () => {
    state.recording = false;
    for (const each of buttons) each.disabled = false;
  };
  state.recording = true; // one recording at a time, also while the browser asks and opens the device
  for (const each of buttons) each.disabled = true;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: kind === "video" });
  } catch {
    find("status").textContent = "The browser gave no access to it; allow it, or attach a file.";
    release();
    return;
  }
  const parts = [];
  const recorder = state.recorder = new MediaRecorder(stream);
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    for (const track of stream.getTracks()) track.stop();
    state.recorder = null;
    button.textContent = label;
    release();
    find("status").textContent = "";
    // "audio/webm;codecs=opus"; some browsers call a sound video/webm
    const format = recorder.mimeType.split(";")[0].split("/")[1] || "webm";
    attach(new File(parts, `recording.${format}`, { type: `${kind}/${format}` }));
  });
  recorder.start();
  button.textContent = "Stop recording";
  button.disabled = false;
  find("status").textContent = "Recording …";
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = find("words").value.trim();
  if (!words || state.busy) return;
  if (state.recording) {
    find("status").textContent = "Stop the recording first, so that it goes with your question.";
    return;
  }
  const file = state.file;
  guarded("The model is thinking …", async () => {
    await ask(words, file);
    find("words").value = "";
    attach(null);
  });
});
find("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    find("ask").requestSubmit();
  }
});
find("file").addEventListener("change", (event) => attach(event.target.files[0] ?? null));
find("detach").addEventListener("click", () => attach(null));
if (navigator.mediaDevices?.getUserMedia && window.MediaRecorder) {
  for (const button of document.querySelectorAll("[data-record]")) {
    button.hidden = false;
    button.addEventListener("click", () => toggleRecording(button));
  }
}
guarded("", async () => {
  const models = await (await call(MODEL_ROUTE)).json();
  state.model = models.data[0].id;
  const isAgent = models.data.some((model) => model.id === `${state.model}-agent`);
  find("agent").closest("label").hidden = !isAgent; // it was trained on no dialogues
});
