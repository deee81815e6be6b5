// Asks the server.

import { isSearch, parameters } from "/state.js";

// Rows that are asked for at first; more at a time where somebody has scrolled far.
export const PAGE = 60;
const LARGEST_PAGE = 300;
// The last place of a ranking that the server gives.
export const LAST = 10000;

/** The server's answer to a request that it refused. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function answer(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer: is it still running?", 0);
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(found.error ?? `The server says ${response.status}`, response.status);
  return found;
}

export const about = () => answer("/api/about");

/** Returns what the server is still doing before it can search; null when it is ready. */
export async function step() {
  const response = await fetch("/healthz").catch(() => null);
  if (!response) return "the server does not answer";
  return response.ok ? null : ((await response.json()).step ?? "starting");
}

/** Returns rows from a place on. */
export function rows(state, offset, signal) {
  const asked = parameters(state);
  asked.set("details", "1");
  asked.set("offset", offset);
  const many = Math.min(Math.max(PAGE, Math.ceil(offset / 2)), LARGEST_PAGE);
  if (!isSearch(state)) {
    asked.delete("minus");  // from nothing there is nothing to subtract
    asked.set("k", many);
    return answer(`/api/rows?${asked}`, { signal });
  }
  asked.set("k", Math.min(many, LAST - offset));
  return answer(`/api/search?${asked}`, { signal });
}

/** Sends a picture, and returns the first rows like it. */
export function send(file, state, signal) {
  const asked = parameters(state);
  asked.set("details", "1");
  asked.set("k", PAGE);
  return answer(`/api/search?${asked}`, { method: "POST", body: file, signal });
}
