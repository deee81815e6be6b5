// The page: joins the box, the results, the details and the address.

import * as api from "/api.js";
import { element, thumbnail } from "/cards.js";
import * as detail from "/detail.js";
import * as filters from "/filters.js";
import { Grid } from "/grid.js";
import { address, isSearch, read } from "/state.js";

const at = (id) => document.getElementById(id);
const [q, list, notice, status, concept] = ["q", "grid", "notice", "status", "concept"].map(at);
// Milliseconds after the last key of a word that is typed.
const PAUSE = 350;
// Searches whose results are kept for the back button.
const KEPT = 30;
const MOST_BYTES = 20 * 2 ** 20;

let state = read(location.search);
let facts = { rows: 0, version: "", columns: [], name: "" };
let asking = null;
let typing = 0;
let isTyping = false;  // whether the address is already that of what is being typed
const grid = new Grid({
  rows: (of, offset, signal) => retried(() => api.rows(of, offset, signal), signal),
  onError: (error) => say(error.message, true),
});
const kept = new Map();
const previews = new Map();  // of pictures that were sent
const known = new Map();  // rows that results were like: whether they have a picture

const search = (of) => address({ ...of, show: null });

function keep() {
  if (!grid.state) return;
  const key = search(grid.state);
  kept.delete(key);
  kept.set(key, { hits: grid.hits, total: grid.total, seen: grid.seen(), words: status.textContent });
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
}

/** Goes to another state: its address, and what it shows. */
function go(changes, { replace = false } = {}) {
  keep();
  state = { ...state, show: null, ...changes };
  // Details that were opened from the page are closed by going back to it.
  const isOnPage = replace ? history.state?.isOnPage : state.show !== null;
  history[replace ? "replaceState" : "pushState"]({ isOnPage }, "", address(state));
  return render();
}

async function render() {
  await loaded;
  paint();
  const isShown = grid.state && search(grid.state) === search(state);
  const before = kept.get(search(state));
  if (!isShown && before) {
    say("");
    asking?.abort();
    list.classList.remove("waiting");
    grid.show(state, before);
    status.textContent = before.words;
    grid.look(before.seen);
  } else if (!isShown) {
    await ask((signal) => api.rows(state, 0, signal));
  }
  await showDetail();
}

/** Has the server answer, and shows the answer. */
async function ask(request, onError = fail) {
  asking?.abort();
  const mine = (asking = new AbortController());
  list.classList.add("waiting");
  try {
    await loaded;
    const found = await retried(() => request(mine.signal), mine.signal);
    say("");
    state = { ...state, picture: found.picture ?? "" };
    if (found.like) {
      known.set(found.like.row, found.like);
      paint();
    }
    grid.show(state, found);
    const many = found.total.toLocaleString("en");
    status.textContent = isSearch(state) ? `${many} ranked` : `${many} ${found.total === 1 ? "row" : "rows"}`;
    if (isSearch(state)) {
      const duration = ` in ${time(found.milliseconds)}`;
      status.append(element("span", { className: "time", textContent: duration }));
    }
    scrollTo(0, 0);
    return found;
  } catch (error) {
    if (error.name !== "AbortError") onError(error);
    return null;
  } finally {
    if (asking === mine) list.classList.remove("waiting");
  }
}

const time = (milliseconds) =>
  milliseconds < 1000 ? `${Math.max(1, Math.round(milliseconds))} ms` : `${(milliseconds / 1000).toFixed(1)} s`;

/** Asks again until the server answers and is ready. */
async function retried(request, signal) {
  for (let isFirst = true; ; isFirst = false) {
    try {
      const found = await request();
      if (isFirst) return found;
      say("");
      grid.retry();
      return found;
    } catch (error) {
      if (!error.passes || signal?.aborted) throw error;
      const step = error.status ? await api.step() : null;
      if (step) say(`Getting ready: ${step} …`);
      else say(error.status ? "Many are searching at once …" : error.message, !error.status);
      await new Promise((done) => setTimeout(done, error.status ? 500 : 1500));
      if (signal?.aborted) throw new DOMException("", "AbortError");
    }
  }
}

function fail(error) {
  grid.clear();
  status.textContent = "";
  say(error.message, true);
}

function say(words, isWrong = false) {
  const many = facts.left_out?.toLocaleString("en");
  words ||= facts.left_out ? `${many} rows are left out, whose parts are missing or damaged.` : "";
  if (!notice.hidden && notice.textContent === words) return;  // screen readers read it again
  notice.hidden = !words;
  notice.textContent = words.charAt(0).toUpperCase() + words.slice(1);
  notice.classList.toggle("wrong", isWrong);
}

/** Shows the state in the box and in the chips. */
function paint() {
  if (document.activeElement !== q || q.value.trim() !== state.q.trim()) q.value = state.q;
  at("clear").hidden = !(isSearch(state) || state.where.length || state.minus.length);
  const chip = (words, className, remove) => {
    const made = element("button", { type: "button", className: `chip ${className}`, title: "Remove" }, element("bdi", { textContent: words }));
    made.addEventListener("click", remove);
    return made;
  };
  const without = (name, value) => () => go({ [name]: state[name].filter((each) => each !== value) });
  at("chips").replaceChildren(
    ...state.plus.map((each) => chip(`+ ${each}`, "plus", without("plus", each))),
    ...state.minus.map((each) => chip(`− ${each}`, "minus", without("minus", each))),
    ...state.where.map((each) => chip(each, "where", without("where", each))),
  );
  const seen = at("seen");
  seen.hidden = !(state.picture || state.row !== null);
  if (!seen.hidden) {
    const row = known.get(state.row);
    const source = row?.path ? thumbnail(row.row, facts.version) : previews.get(state.picture);
    const words = row && !row.path ? `like ${row.caption || row.key}` : "like";
    const made = chip(words, "", () => go({ picture: "", row: null }));
    if (source) {
      const image = element("img", { src: source, alt: "" });
      image.addEventListener("error", () => image.remove());
      made.prepend(image);
    }
    seen.replaceChildren(made);
  }
  filters.fill(state.where);
  document.title = [state.q || (state.row !== null || state.picture ? "Like a picture" : ""), facts.name].filter(Boolean).join(" · ") || "clip-jax";
}

async function showDetail() {
  if (state.show === null) {
    if (detail.isOpen()) {
      const place = grid.current;  // the browser focuses the one that was opened first
      detail.close();
      grid.select(place, true);
    }
    return;
  }
  const place = grid.place(state.show);
  if (place < 0) return detail.close();
  grid.select(place);
  const isLast = place === grid.hits.length - 1;
  detail.show(grid.hits[place], { version: facts.version, isFirst: !place, isLast });
}

const moreLike = (row) => go({ row: Number(row), q: "", picture: "", plus: [], minus: [] });

function step(by) {
  const hit = grid.hits[grid.place(state.show) + by];
  if (hit) go({ show: hit.row }, { replace: true }).then(() => by > 0 && grid.more());
}

async function sendPicture(file) {
  if (!file) return;
  if (file.size > MOST_BYTES) return say("A picture may have 20 MB: take a smaller one.", true);
  keep();
  const before = state;
  const mine = (state = { ...state, q: "", row: null, picture: "", show: null });
  q.value = "";
  detail.close();
  const found = await ask((signal) => api.send(file, mine, signal), (error) => say(error.message, true));
  if (!found) {
    if (state === mine) {  // nothing else was asked for meanwhile
      state = before;
      paint();
    }
    return;
  }
  previews.set(found.picture, URL.createObjectURL(file));
  history.pushState(null, "", address(state));
  paint();
}

// --- the box

/** Whether what stands in the box is what was asked for, and was answered or will be. */
const isAsked = () => q.value.trim() === state.q.trim() && (grid.state || list.classList.contains("waiting"));

q.addEventListener("input", () => {
  at("clear").hidden = !q.value;
  clearTimeout(typing);
  typing = setTimeout(() => {
    if (isAsked()) return;
    const replace = isTyping;
    isTyping = true;
    go({ q: q.value }, { replace });
  }, PAUSE);
});
q.addEventListener("blur", () => (isTyping = false));
at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  if (!isAsked()) go({ q: q.value }, { replace: isTyping || q.value.trim() === state.q.trim() });
  isTyping = false;
  if (matchMedia("(hover: none)").matches) q.blur();  // away with the keyboard of a phone
});
const clear = () => {
  clearTimeout(typing);
  isTyping = false;
  q.value = "";
  go({ q: "", picture: "", row: null, plus: [], minus: [], where: [] });
};
const HOVERS = matchMedia("(hover: hover)").matches;
at("clear").addEventListener("click", () => (clear(), q.focus()));
at("home").addEventListener("click", (event) => {
  event.preventDefault();
  clear();
  if (HOVERS) q.focus();
});
at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", (event) => {
  sendPicture(event.target.files[0]);
  event.target.value = "";
});

for (const name of ["plus", "minus"]) {
  at(name).addEventListener("click", () => {
    concept.dataset.name = name;
    concept.hidden = false;
    concept.firstElementChild.placeholder = name === "plus" ? "more of, such as snow" : "less of, such as people";
    at(name).after(concept);
    concept.firstElementChild.focus();
  });
}
concept.addEventListener("submit", (event) => {
  event.preventDefault();
  const { name } = concept.dataset;
  const words = concept.firstElementChild.value.trim();
  concept.firstElementChild.value = "";
  concept.hidden = true;
  if (!words || state[name].includes(words)) return;
  if (name === "minus" && !isSearch(state)) return say("First search for something; then subtract from it.", true);
  go({ [name]: [...state[name], words] });
});
concept.addEventListener("focusout", () => setTimeout(() => (concept.hidden ||= !concept.contains(document.activeElement)), 150));

// --- the results

function onClick(event) {
  const { like, copy } = event.target.closest("[data-like], [data-copy]")?.dataset ?? {};
  if (like !== undefined) return moreLike(like);
  if (copy !== undefined) {
    navigator.clipboard?.writeText(copy).then(() => (event.target.textContent = "Copied"));
    return;
  }
  const open = event.target.closest("[data-place]");
  if (!open) return;
  grid.select(Number(open.dataset.place));
  go({ show: grid.hits[grid.current].row });
}
list.addEventListener("click", onClick);
list.addEventListener("focusin", (event) => {
  const { place } = event.target.dataset;
  if (place !== undefined) grid.select(Number(place));
});
const dialog = at("detail");
dialog.addEventListener("click", (event) => (event.target === dialog ? leaveDetail() : onClick(event)));
dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  leaveDetail();
});
at("close").addEventListener("click", leaveDetail);
at("previous").addEventListener("click", () => step(-1));
at("next").addEventListener("click", () => step(1));

function leaveDetail() {
  if (history.state?.isOnPage) history.back();
  else go({}, { replace: true });
}

// --- keys

const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inField = event.target.closest?.("input, select");
  if (detail.isOpen()) {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "m") moreLike(state.show);
    return;
  }
  if (event.key === "/" && (!inField || (inField === q && !q.value))) {
    event.preventDefault();
    q.focus();
    q.select();
  } else if (event.key === "Escape") {
    if (!concept.hidden) {
      concept.hidden = true;
      at(concept.dataset.name).focus();
    } else if (inField === q && (q.value || isSearch(state))) clear();
    else if (inField) inField.blur();
    else q.focus();
  } else if (inField === q && event.key === "ArrowDown" && grid.hits.length) {
    event.preventDefault();
    grid.select(grid.current, true);
  } else if (!inField && ARROWS.includes(event.key) && grid.hits.length && !event.shiftKey) {
    if (!list.contains(document.activeElement) && ["Home", "End", "ArrowUp"].includes(event.key)) return;
    event.preventDefault();
    const isIn = list.contains(document.activeElement);
    const place = isIn ? grid.beside(event.key) : grid.current;
    if (place === null) q.focus();
    else grid.select(place, true);
  } else if (!inField && event.key === "m" && list.contains(document.activeElement)) {
    moreLike(grid.hits[grid.current].row);
  }
});

// --- pictures that are dropped or pasted

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").hidden = !hasFiles(event);
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) at("drop").hidden = true;
});
addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").hidden = true;
  const file = [...(event.dataTransfer?.files ?? [])][0];
  if (file) sendPicture(file);
  else say("That was no file: save the picture first, or copy and paste it.", true);
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  sendPicture(file);
});

addEventListener("popstate", () => {
  keep();
  isTyping = false;
  state = read(location.search);
  render();
});

// --- the beginning

history.scrollRestoration = "manual";
async function load() {
  facts = await retried(api.about);
  grid.version = facts.version;
  filters.build(facts.columns, (where) => go({ where }));
  if (!facts.reads_texts) {
    q.disabled = at("plus").disabled = at("minus").disabled = true;
    q.placeholder = "This model's tokenizer isn't at hand: drop a picture";
  }
  say("");
}
// People type at once; on a touch screen that would open the keyboard over the pictures.
if (!isSearch(state) && HOVERS) q.focus({ preventScroll: true });
const loaded = load().catch(fail);
render();
