// Things that are shown. Texts go in as text, never as markup.

import { call, ServiceError } from "./service.js";

const blobs = new Map(); // artifact id -> blob; a file is fetched once

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export const button = (label, onclick, attributes = {}) => element("button", { type: "button", onclick, ...attributes }, label);

export const kindOf = (mediaType) => mediaType.split("/")[0];

export function showMedium(blob, mediaType, label) {
  const source = URL.createObjectURL(blob);
  const kind = kindOf(mediaType);
  if (kind === "image") return element("img", { src: source, alt: label });
  if (kind === "audio") return element("audio", { src: source, controls: true, "aria-label": label });
  if (kind === "video") return element("video", { src: source, controls: true, playsinline: true, "aria-label": label });
  return element("p", {}, label);
}

async function fetchArtifact(artifact) {
  if (!blobs.has(artifact.id)) blobs.set(artifact.id, await (await call(artifact.path)).blob());
  return blobs.get(artifact.id);
}

// A file of the service's in place of which stands a word while it comes, and for good where it has expired.
export function showArtifact(artifact, label) {
  const place = element("div", { class: "medium" }, element("p", { class: "hint" }, "…"));
  fetchArtifact(artifact).then(
    (blob) => place.replaceChildren(showMedium(blob, artifact.media_type, label)),
    (error) => place.replaceChildren(element("p", { class: "hint" }, error instanceof ServiceError ? "This file is no longer kept." : "")),
  );
  return place;
}

export async function download(artifact) {
  const ending = artifact.name.split("/").pop();
  element("a", { href: URL.createObjectURL(await fetchArtifact(artifact)), download: ending }).click();
}

// What a tool was given beside what it made: pictures of one size under a slider, else side by side.
export function compare(before, after, label) {
  const kinds = [before, after].map((artifact) => kindOf(artifact.media_type));
  const parts = [showArtifact(before, "before"), showArtifact(after, label)];
  const captions = ["Before", "After"];
  const pair = element("div", { class: "pair" }, ...parts.map((part, i) => element("figure", {}, part, element("figcaption", {}, captions[i]))));
  if (kinds.some((kind) => kind !== "image")) return pair;
  Promise.all([before, after].map(fetchArtifact)).then(async (files) => {
    const pictures = files.map((file, i) => showMedium(file, "image/", i ? label : "before"));
    await Promise.all(pictures.map((picture) => picture.decode()));
    const [first, second] = pictures;
    if (first.naturalWidth !== second.naturalWidth || first.naturalHeight !== second.naturalHeight) return;
    const stack = element("div", { class: "stack" }, ...pictures);
    const slider = element("input", { type: "range", min: 0, max: 100, value: 0, "aria-label": "How much of the picture is shown as before" });
    slider.addEventListener("input", () => stack.style.setProperty("--before", `${slider.value}%`));
    pair.replaceWith(element("div", {}, stack, element("label", { class: "slide" }, "After", slider, "Before")));
  }, () => {});
  return pair;
}

export function bar(share, label) {
  const made = element("div", {
    class: "bar", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": share,
    "aria-valuetext": `${(100 * share).toFixed(1)} %`,
  }, element("span"));
  made.style.setProperty("--share", share);
  return made;
}
