// Asks the server.

import { address, isSearch, parameters } from "/state.js";

// Rows that are asked for at first; more at a time where somebody has scrolled far.
export const PAGE = 60;
const LARGEST_PAGE = 300;
// The last place of a ranking that the server gives.
export const LAST = 10000;

/** The server's answer to a request that it refused; `passes` if it may answer soon. */
export class Refused extends Error {
  constructor(message, status, passes) {
    super(message);
    Object.assign(this, { status, passes });
  }
}

let version;  // of the rows

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer: is it still running?", 0, true);
  }
  const found = await response.json().catch(() => ({}));
  if (response.ok) return found;
  const passes = response.headers.has("Retry-After");
  throw new Refused(found.error ?? `The server says ${response.status}`, response.status, passes);
}

export async function about() {
  const found = await answer("/api/about");
  version = found.version;
  return found;
}

/** Returns an answer; one about other rows, after a restart of the server, loads the page anew. */
function ofTheseRows(found, state) {
  if (found.version === version) return found;
  history.replaceState(history.state, "", address({ ...state, picture: found.picture ?? "" }));
  location.reload();
  return new Promise(() => {});
}

/** Returns what the server is still doing before it can search; null when it is ready. */
export async function step() {
  const response = await fetch("/healthz").catch(() => null);
  if (!response) return "the server does not answer";
  return response.ok ? null : ((await response.json()).step ?? "starting");
}

/** Returns rows from a place on. */
export async function rows(state, offset, signal) {
  const asked = parameters(state);
  asked.set("details", "1");
  asked.set("offset", offset);
  const many = Math.min(Math.max(PAGE, Math.ceil(offset / 2)), LARGEST_PAGE);
  if (!isSearch(state)) {
    asked.delete("minus");  // from nothing there is nothing to subtract
    asked.set("k", many);
    return ofTheseRows(await answer(`/api/rows?${asked}`, { signal }), state);
  }
  asked.set("k", Math.min(many, LAST - offset));
  return ofTheseRows(await answer(`/api/search?${asked}`, { signal }), state);
}

/** Sends a picture, and returns the first rows like it. */
export async function send(file, state, signal) {
  const asked = parameters(state);
  asked.set("details", "1");
  asked.set("k", PAGE);
  return ofTheseRows(await answer(`/api/search?${asked}`, { method: "POST", body: file, signal }), state);
}
