// The results: loaded as one scrolls, walked through by the arrow keys.

import { LAST } from "/api.js";
import { card, frame } from "/cards.js";
import { isSearch } from "/state.js";

const list = document.getElementById("grid");
const end = document.getElementById("end");
const bar = document.getElementById("bar");

export class Grid {
  constructor({ rows, onError }) {
    Object.assign(this, { rows, onError, version: "" });
    this.clear();
    for (const name of ["scroll", "resize"]) {
      addEventListener(name, () => this.#isNearEnd() && this.more(), { passive: true });
    }
  }

  clear() {
    this.loading?.abort();
    Object.assign(this, { hits: [], total: 0, state: null, loading: null, current: 0 });
    list.replaceChildren();
    end.textContent = "";
  }

  /** Shows what was loaded before, or the first answer to a new search. */
  show(state, { hits, total }) {
    this.clear();
    Object.assign(this, { state, total });
    this.append(hits);
  }

  append(hits) {
    const begin = this.hits.length;
    this.hits.push(...hits);
    list.append(...hits.map((hit, i) => card(hit, begin + i, this.version)));
    if (!begin) this.select(0);
    const most = isSearch(this.state) ? Math.min(this.total, LAST) : this.total;
    this.isWhole = this.hits.length >= most || !hits.length;
    if (!this.total) end.textContent = "Nothing was found.";
    else if (!this.isWhole) end.textContent = "…";
    else if (most < this.total) end.textContent = `These are the best ${most.toLocaleString("en")} of ${this.total.toLocaleString("en")}.`;
    else end.textContent = "";
    requestAnimationFrame(() => this.#isNearEnd() && this.more());
  }

  async more() {
    if (this.isWhole || this.loading || !this.state) return;
    const loading = (this.loading = new AbortController());
    try {
      const found = await this.rows(this.state, this.hits.length, loading.signal);
      if (this.loading !== loading) return;
      this.loading = null;
      this.append(found.hits);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.loading = null;
      this.isWhole = true;
      this.onError(error);
    }
  }

  /** Asks again for pictures that did not come. */
  retry() {
    for (const failed of list.querySelectorAll(".failed")) {
      const { place } = failed.closest(".open").dataset;
      failed.parentElement.replaceWith(frame(this.hits[place], this.version));
    }
  }

  /** Makes a card the one that the keyboard reaches, and focuses it. */
  select(place, focus = false) {
    const cards = list.children;
    if (cards[this.current]) cards[this.current].firstChild.tabIndex = -1;
    this.current = Math.max(0, Math.min(place, cards.length - 1));
    const open = cards[this.current]?.firstChild;
    if (!open) return;
    open.tabIndex = 0;
    if (focus) {
      open.focus({ preventScroll: true });
      open.scrollIntoView({ block: "nearest" });
    }
    if (this.current > cards.length - 20) this.more();
  }

  /** Returns the place that an arrow key leads to; null above the first row. */
  beside(key) {
    const wide = getComputedStyle(list).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[key];
    const place = key === "Home" ? 0 : key === "End" ? this.hits.length - 1 : this.current + step;
    if (place < 0) return key === "ArrowUp" ? null : 0;
    return Math.min(place, this.hits.length - 1);
  }

  /** Returns where somebody is: the first card that is in sight, and how far down it is. */
  seen() {
    const cards = list.children;
    const head = bar.getBoundingClientRect().bottom;
    let [low, high] = [0, cards.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (cards[middle].getBoundingClientRect().bottom > head) high = middle;
      else low = middle + 1;
    }
    return { place: low, top: (cards[low]?.getBoundingClientRect().top ?? head) - head };
  }

  /** Goes to where somebody was. */
  look({ place, top }) {
    const card = list.children[place];
    if (!card) return;
    // The heights of cards that were never in sight are estimates, until they are.
    const go = () => scrollBy(0, card.getBoundingClientRect().top - bar.getBoundingClientRect().bottom - top);
    go();
    requestAnimationFrame(() => (go(), requestAnimationFrame(go)));
  }

  place(row) {
    return this.hits.findIndex((hit) => hit.row === row);
  }

  #isNearEnd() {
    return end.getBoundingClientRect().top < innerHeight + 1500;
  }
}
