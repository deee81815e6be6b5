// A result by itself: the whole picture, and all that is known of it.

import { element, thumbnail } from "/cards.js";

const dialog = document.getElementById("detail");
const stage = document.getElementById("stage");
const about = document.getElementById("about");
const [previous, next] = ["previous", "next"].map((id) => document.getElementById(id));

export const isOpen = () => dialog.open;

export function close() {
  if (dialog.open) dialog.close();
}

/** Shows a result. */
export function show(hit, { version, isFirst, isLast }) {
  stage.replaceChildren(hit.path ? picture(hit, version) : element("p", { textContent: hit.caption || hit.key }));
  about.replaceChildren(
    element("h2", {}, element("bdi", { textContent: hit.caption || hit.key })),
    actions(hit),
    facts(hit),
  );
  [previous.disabled, next.disabled] = [isFirst, isLast];
  if (!dialog.open) dialog.showModal();
  about.scrollTop = 0;
}

function picture(hit, version) {
  const image = element("img", { alt: hit.caption || hit.key, draggable: false });
  image.addEventListener("error", () => {
    // A format that browsers don't show, or far too large: the thumbnail, if there is one.
    if (image.dataset.isSmall) image.replaceWith(element("p", { textContent: "No picture" }));
    else [image.dataset.isSmall, image.src] = ["1", thumbnail(hit.row, version)];
  });
  image.src = `/originals/${hit.row}`;
  return image;
}

function actions(hit) {
  const like = element("button", { type: "button", className: "first", textContent: "More like this", title: "m" });
  like.dataset.like = hit.row;
  const made = element("div", { className: "actions" }, like);
  if (!hit.path) return made;
  const original = { href: hit.link ?? `/originals/${hit.row}`, target: "_blank", rel: "noreferrer", textContent: "Open original" };
  const copy = element("button", { type: "button", textContent: "Copy path" });
  copy.dataset.copy = hit.path;
  made.append(element("a", original), copy);
  return made;
}

function facts(hit) {
  const made = element("dl");
  const add = (name, value, className = "") =>
    made.append(element("div", {}, element("dt", { textContent: name }), element("dd", { className }, element("bdi", { textContent: value }))));
  if (hit.score !== null) add("Score", hit.score.toFixed(4));
  for (const [name, value] of Object.entries(hit.columns)) if (value !== null) add(name, String(value));
  if (hit.path) add("Path", hit.path, "path");
  if (hit.key !== hit.path) add("Key", hit.key, "path");
  return made;
}
