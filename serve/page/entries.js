// The entries of the conversation, each shown from plain data, so that a reload shows the same.

import { argumentForm, whyNot } from "./arguments.js";
import { bar, button, compare, download, element, kindOf, showArtifact } from "./elements.js";

const WEAK = 0.05; // shares below it are greyed
const NO_TOOL = "unknown";

// What people call a tool: its name, or its id without the place that it comes from.
export function titleOf(tool, id) {
  if (tool?.name) return tool.name;
  const words = id.split("/").pop().replaceAll(/[-_]+/g, " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

const firstSentence = (text) => /^.*?[.!?](?=\s|$)/.exec(text ?? "")?.[0] ?? text ?? "";

function item(who, words, kind, ...parts) {
  return element("li", { class: kind }, element("p", { class: "who" }, who), element("p", { class: "words" }, words), ...parts);
}

const makers = {
  user: (entry) => item("You", entry.words, "user", ...(entry.artifact ? [showArtifact(entry.artifact, "your file")] : [])),
  error: (entry) => item("Service", entry.words, "service error"),
  choice: (entry, page) => item("Model", entry.words, "service", showRanking(entry, page)),
  result: (entry, page) => {
    const tool = page.tools.get(entry.tool);
    const made = item(titleOf(tool, entry.tool), entry.text || "Done.", "service", ...showMade(entry.arguments, entry.artifact, entry.tool, page));
    const what = element("details", {}, element("summary", {}, "What was called"), element("p", { class: "id" }, entry.tool));
    if (tool?.parameters) what.append(argumentForm(tool, entry.arguments, page.artifacts(), (given) => page.runWith(entry.tool, given)));
    made.append(what);
    return made;
  },
  agent: (entry, page) => {
    const made = item("Agent", entry.words, "service", element("ol", { class: "steps", "aria-label": "Steps" }));
    made.querySelector(".words").before(made.querySelector(".steps"));
    for (const step of entry.steps) addStep(made, step, page);
    return made;
  },
};

export const showEntry = (entry, page) => makers[entry.type](entry, page);

export function addStep(made, step, page) {
  const title = titleOf(page.tools.get(step.tool_id), step.tool);
  const said = step.text || step.observation;
  made.querySelector(".steps").append(element("li", { class: step.error ? "error" : "" },
    element("p", { class: "step" }, element("strong", {}, title), ` ${said}`),
    ...showMade(step.arguments, step.artifact, step.tool_id, page),
    element("details", {}, element("summary", {}, `What the model wrote (${(step.seconds + step.model_seconds).toFixed(1)} s)`),
      element("pre", {}, step.turn))));
}

// What a tool made, beside what it was made from, and what can be done with it.
function showMade(given, artifact, id, page) {
  if (!artifact) return [];
  const label = `result of ${id}`;
  const ids = new Set(Object.values(given));
  const before = page.artifacts().find((known) => ids.has(known.id) && known.id !== artifact.id && kindOf(known.media_type) === kindOf(artifact.media_type));
  return [
    before ? compare(before, artifact, label) : showArtifact(artifact, label),
    element("div", { class: "row" },
      button("Use this result next", () => page.useNext(artifact), { class: "next" }),
      button("Download", () => download(artifact))),
  ];
}

function showRanking(entry, page) {
  const attached = page.artifactsOf(entry);
  const rows = entry.ranking.map(([id, share]) => {
    const tool = page.tools.get(id);
    const isNone = id === NO_TOOL;
    const title = isNone ? "None of the tools" : titleOf(tool, id);
    const fault = isNone ? "" : whyNot(tool, attached);
    const place = element("div", { class: "setup" });
    const setUp = () => place.replaceChildren(
      ...(place.hasChildNodes() ? [] : [argumentForm(tool, page.guess(tool, entry), page.artifacts(), (given) => page.runWith(id, given))]));
    const controls = isNone ? [] : fault
      ? [element("span", { class: "hint" }, fault)]
      : [button("Run", () => page.run(entry, id), { class: "run work", "aria-label": `Run ${id}` }),
         button("Set up", setUp, { class: "work", "aria-label": `Set up ${id}` })];
    return element("li", { class: `${id === entry.chosen ? "chosen" : ""} ${share < WEAK ? "weak" : ""}` },
      element("div", { class: "tool" },
        element("strong", {}, title),
        ...(isNone ? [] : [element("p", { class: "hint" }, firstSentence(tool?.description)), element("p", { class: "id" }, id)])),
      element("div", { class: "share" }, bar(share, `probability of ${title}`), element("span", { class: "number" }, `${(100 * share).toFixed(1)} %`)),
      element("div", { class: "controls" }, ...controls), place);
  });
  return element("ol", { class: "ranking", "aria-label": "What the model would use" }, ...rows);
}
