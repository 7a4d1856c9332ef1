// A tool's arguments as a form, made from its JSON schema.

import { element, kindOf } from "./elements.js";

let fields = 0;

export const mediaKind = (schema) => schema.contentMediaType && kindOf(schema.contentMediaType);

// The kinds of media that a tool must be given; null where this service does not run it.
export function neededMedia(tool) {
  if (!tool?.parameters) return null;
  return tool.parameters.required.map((name) => mediaKind(tool.parameters.properties[name])).filter(Boolean);
}

// What a tool lacks to run on these files, in words; "" where it can run.
export function whyNot(tool, artifacts) {
  const needed = neededMedia(tool);
  if (needed === null) return "not run here";
  if (!tool.ready) return "weights not fetched";
  const given = artifacts.map((artifact) => kindOf(artifact.media_type));
  for (const kind of needed) {
    const place = given.indexOf(kind);
    if (place < 0) return `needs ${{ image: "a picture", audio: "a sound", video: "a video" }[kind] ?? `a file (${kind})`}`;
    given.splice(place, 1);
  }
  return "";
}

function field(name, schema, value, artifacts) {
  const shared = { name, id: `argument-${fields++}` };
  const kind = mediaKind(schema);
  let input;
  if (kind || schema.enum) {
    const options = kind
      ? artifacts.filter((artifact) => kindOf(artifact.media_type) === kind).map((artifact) => [artifact.id, artifact.label])
      : schema.enum.map((option) => [option, option]);
    input = element("select", shared, ...options.map(([id, label]) => element("option", { value: id, selected: id === value }, label)));
  } else if (schema.type === "number" || schema.type === "integer") {
    const step = schema.type === "integer" ? 1 : "any";
    input = element("input", { ...shared, type: "number", min: schema.minimum, max: schema.maximum, step, value });
  } else {
    input = element("textarea", { ...shared, rows: 2, maxlength: schema.maxLength });
    input.value = value ?? "";
  }
  input.required = true;
  return element("div", {}, element("label", { for: shared.id }, `${name}: ${schema.description ?? ""}`), input);
}

export function argumentForm(tool, values, artifacts, onsubmit) {
  const properties = Object.entries(tool.parameters.properties);
  const form = element("form", { class: "arguments" },
    ...properties.map(([name, schema]) => field(name, schema, values[name] ?? schema.default, artifacts)),
    element("button", { class: "primary work" }, "Run with these"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = new FormData(form);
    const isNumber = (schema) => schema.type === "number" || schema.type === "integer";
    onsubmit(Object.fromEntries(properties.map(([name, schema]) => [name, isNumber(schema) ? Number(given.get(name)) : given.get(name)])));
  });
  return form;
}
