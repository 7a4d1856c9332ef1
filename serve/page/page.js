// The page: a chat over this service's own routes. No library, no request to anywhere else.

import { kindOf, showArtifact, showMedium } from "./elements.js";
import { addStep, showEntry, titleOf } from "./entries.js";
import { mediaKind } from "./arguments.js";
import { isRecording, offerRecording } from "./recorder.js";
import { begin, get, post, ServiceError, stop, Stopped, stream, upload } from "./service.js";

const HISTORY = "toolmm.chat.1"; // the number changes with the form of the entries
const TOP = 5;
const find = (id) => document.getElementById(id);
const state = { model: "", file: null, artifact: null, busy: false, entries: [], messages: [] };

// --- what the entries may do with the page

const page = {
  tools: new Map(),
  // Every file of the conversation, the latest first, and what to call it.
  artifacts() {
    const titled = (artifact, id) => artifact && { ...artifact, label: `result of ${titleOf(page.tools.get(id), id)}` };
    const found = state.entries.flatMap((entry) => entry.type === "user"
      ? [entry.artifact && { label: `your file to “${entry.words.slice(0, 40)}”`, ...entry.artifact }]
      : [titled(entry.artifact, entry.tool), ...(entry.steps ?? []).map((step) => titled(step.artifact, step.tool_id))]);
    return [...new Map(found.filter(Boolean).reverse().map((artifact) => [artifact.id, artifact])).values()];
  },
  artifactsOf: (choice) => page.artifacts().filter((artifact) => choice.files.includes(artifact.id)),
  guess(tool, choice) {
    const files = page.artifactsOf(choice);
    const fill = ([name, schema]) => {
      const kind = mediaKind(schema);
      const file = files.find((artifact) => kindOf(artifact.media_type) === kind);
      return [name, kind ? file?.id : schema.default ?? (schema.type === "string" && !schema.enum ? choice.question : undefined)];
    };
    return Object.fromEntries(Object.entries(tool.parameters.properties).map(fill));
  },
  run: (choice, tool) => guarded(`${titleOf(page.tools.get(tool), tool)} is running`, async () => {
    const named = { type: "function", function: { name: tool } };
    const answer = await post("/v1/chat/completions", { model: state.model, messages: choice.messages, tool_choice: named });
    await invoke(tool, JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments));
  }),
  runWith: (tool, given) => guarded(`${titleOf(page.tools.get(tool), tool)} is running`, () => invoke(tool, given)),
  useNext(artifact) {
    attach(null, artifact);
    find("words").focus();
  },
};

async function invoke(tool, given) {
  const result = await post(`/v1/tools/${tool}/invoke`, { arguments: given });
  add({ type: "result", tool, arguments: given, text: result.text, artifact: result.artifact });
}

// --- the conversation

function add(entry) {
  state.entries.push(entry);
  const made = showEntry(entry, page);
  find("chat").append(made);
  made.scrollIntoView({ block: "nearest" });
  keep();
  return made;
}

function keep() {
  find("start").hidden = state.entries.length > 0;
  find("clear").hidden = state.entries.length === 0;
  try {
    sessionStorage.setItem(HISTORY, JSON.stringify({ entries: state.entries, messages: state.messages }));
  } catch {
    sessionStorage.removeItem(HISTORY); // too long to be kept; what is shown stays
  }
}

function recall() {
  Object.assign(state, JSON.parse(sessionStorage.getItem(HISTORY) ?? '{"entries": [], "messages": []}'));
  find("chat").replaceChildren(...state.entries.map((entry) => showEntry(entry, page)));
  keep();
}

async function ask(words, file, chosen) {
  const artifact = file ? await upload(file) : chosen;
  const content = [{ type: "text", text: words }];
  if (artifact) {
    const reference = `artifact:${artifact.id}`;
    const kind = kindOf(artifact.media_type);
    if (kind === "image") content.push({ type: "image_url", image_url: { url: reference } });
    else if (kind === "audio") content.push({ type: "input_audio", input_audio: { data: reference, format: "wav" } });
    else content.push({ type: "video_url", video_url: { url: reference } });
  }
  const question = { role: "user", content };
  add({ type: "user", words, artifact });
  const messages = [...state.messages, question];
  const said = await (find("agent").checked ? askAgent(messages) : select(messages, words, artifact));
  state.messages = [...messages, { role: "assistant", content: said }];
  keep();
}

async function select(messages, question, artifact) {
  const answer = await post("/v1/chat/completions", { model: state.model, messages, logprobs: true, top_logprobs: TOP });
  const { message, logprobs } = answer.choices[0];
  const called = message.tool_calls && logprobs.content[0].token; // its id; the call has a name that clients take
  const words = called ? `I would use ${titleOf(page.tools.get(called), called)}.` : message.content;
  const token = logprobs?.content?.[0];
  const ranking = (token?.top_logprobs ?? []).map(({ token: tool, logprob }) => [tool, Math.exp(logprob)]);
  add({ type: "choice", words, ranking, chosen: token?.token, messages, question, files: artifact ? [artifact.id] : [] });
  return called ? `I would use ${called}.` : message.content;
}

async function askAgent(messages) {
  const entry = { type: "agent", words: "", steps: [] };
  const made = add(entry);
  for await (const event of stream("/v1/chat/completions", { model: state.model, messages, agent: true, stream: true })) {
    const step = event.agent?.step;
    if (step) {
      entry.steps.push(step);
      addStep(made, step, page);
    }
    entry.words += event.choices[0]?.delta.content ?? "";
    made.querySelector(".words").textContent = entry.words;
    made.scrollIntoView({ block: "nearest" });
  }
  return entry.words;
}

// --- the form

function setBusy(words) {
  state.busy = Boolean(words);
  find("send").hidden = state.busy;
  find("stop").hidden = !state.busy;
  for (const each of document.querySelectorAll(".work")) each.disabled = state.busy;
  find("status").textContent = words ? `${words} …` : "";
  find("elapsed").textContent = "";
}

async function guarded(words, work) {
  if (state.busy) return;
  begin();
  setBusy(words);
  const start = performance.now();
  const clock = setInterval(() => { find("elapsed").textContent = `${Math.round((performance.now() - start) / 1000)} s`; }, 1000);
  let told = "";
  try {
    await work();
  } catch (error) {
    if (error instanceof Stopped) told = "Stopped.";
    else {
      if (!(error instanceof ServiceError)) console.error(error);
      add({ type: "error", words: error instanceof ServiceError ? error.message : "Something went wrong on this page; try again." });
    }
  } finally {
    clearInterval(clock);
    setBusy("");
    find("status").textContent = told;
    keep();
  }
}

function attach(file, artifact = null) {
  state.file = file;
  state.artifact = artifact;
  find("attachment").hidden = !file && !artifact;
  find("preview").replaceChildren(...(file ? [showMedium(file, file.type, "attached file")] : artifact ? [showArtifact(artifact, "attached file")] : []));
  if (!file) find("file").value = "";
}

const tell = (words) => { find("status").textContent = words; };

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = find("words").value.trim();
  if (!words || state.busy) return;
  if (isRecording()) {
    tell("Stop the recording first, so that it goes with your question.");
    return;
  }
  const { file, artifact } = state;
  guarded("The model is thinking", async () => {
    await ask(words, file, artifact);
    find("words").value = "";
    attach(null);
  });
});
find("stop").addEventListener("click", stop);
find("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    find("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.busy) stop(); });
find("clear").addEventListener("click", () => {
  if (state.busy) return;
  sessionStorage.removeItem(HISTORY);
  recall();
  find("words").focus();
});
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    find("words").value = example.textContent;
    tell(state.file || !example.dataset.needs ? "" : `Attach ${example.dataset.needs} to it, or drop one here.`);
    find("words").focus();
  });
}
find("file").addEventListener("change", (event) => attach(event.target.files[0] ?? null));
find("detach").addEventListener("click", () => attach(null));
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
for (const end of ["dragleave", "drop"]) document.addEventListener(end, () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  attach(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (!file) return;
  event.preventDefault();
  attach(file);
});
offerRecording(document.querySelectorAll("[data-record]"), tell, attach);

// --- the models

async function choose(model) {
  state.model = model;
  find("agent").closest("label").hidden = !find("model").querySelector(`option[value="${CSS.escape(model)}"]`).dataset.agent;
  if (find("agent").closest("label").hidden) find("agent").checked = false; // it was trained on no dialogues
  const { tools, others } = await get(`/v1/tools?model=${encodeURIComponent(model)}`);
  page.tools = new Map([...others, ...tools].map((tool) => [tool.tool_id, tool]));
}

find("model").addEventListener("change", (event) => guarded("The model's tools are read", () => choose(event.target.value)));
guarded("The service is asked for its models", async () => {
  const ids = (await get("/v1/models")).data.map((model) => model.id);
  const names = ids.filter((id) => !(id.endsWith("-agent") && ids.includes(id.slice(0, -"-agent".length))));
  find("model").replaceChildren(...names.map((name) => {
    const option = new Option(name, name);
    if (ids.includes(`${name}-agent`)) option.dataset.agent = "yes";
    return option;
  }));
  find("model").closest("label").hidden = names.length < 2;
  await choose(names[0]);
  recall();
});
