// The cards of the results.

/** Returns an element with a class and text, which is never taken for HTML. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const thumbnail = (row, version) => `/thumbnails/${row}?v=${version}`;

// Pictures that are nearly square fill the frame; of others all is shown.
const WIDEST = 1.7;

/** Returns the frame of a row's picture, or of its text. */
export function frame(hit, version) {
  const words = hit.caption || hit.key;
  const made = element("span", { className: "frame" });
  if (!hit.path) {
    made.append(element("p", { className: "words", textContent: words }));
    return made;
  }
  // The words stand below it: a screen reader need not say them twice.
  const image = element("img", { alt: "", loading: "lazy", decoding: "async", draggable: false });
  image.addEventListener("load", () => {
    const ratio = image.naturalWidth / image.naturalHeight;
    image.classList.toggle("cover", ratio < WIDEST && ratio > 1 / WIDEST);
    image.classList.add("there");
  });
  image.addEventListener("error", () => image.replaceWith(element("p", { className: "failed", textContent: "No picture" })));
  image.src = thumbnail(hit.row, version);
  made.append(image);
  return made;
}

/** Returns the card of a result. */
export function card(hit, place, version) {
  const words = hit.path ? hit.caption || hit.key : hit.key;
  const open = element("button", { type: "button", className: "open", title: hit.path ?? hit.key, tabIndex: -1 });
  open.dataset.place = place;
  const line = element("span", { className: "line" }, element("bdi", { textContent: words }));
  if (hit.score !== null) line.append(element("b", { textContent: hit.score.toFixed(3) }));
  open.append(frame(hit, version), line);
  const like = element("button", { type: "button", className: "like", textContent: "More like this", tabIndex: -1 });
  like.ariaLabel = `More like this: ${words}`;
  like.dataset.like = hit.row;
  return element("li", {}, open, like);
}
