// What is searched for, as it stands in the address: the back button and bookmarks work by it.

const MANY = ["plus", "minus", "where"];

/** Returns the state that an address says. */
export function read(search) {
  const given = new URLSearchParams(search);
  const number = (name) => (/^\d{1,15}$/.test(given.get(name) ?? "") ? Number(given.get(name)) : null);
  const state = { q: given.get("q") ?? "", picture: given.get("picture") ?? "" };
  for (const name of MANY) state[name] = given.getAll(name);
  return { ...state, row: number("row"), show: number("show") };
}

/** Returns the parameters of what is searched for, as the server takes them. */
export function parameters(state) {
  const found = new URLSearchParams();
  if (state.q.trim()) found.set("q", state.q.trim());
  if (state.picture) found.set("picture", state.picture);
  if (state.row !== null) found.set("row", state.row);
  for (const name of MANY) for (const value of state[name]) found.append(name, value);
  return found;
}

/** Returns the address of a state. */
export function address(state) {
  const found = parameters(state);
  if (state.show !== null) found.set("show", state.show);
  return found.size ? `/?${found}` : "/";
}

/** Whether there is something that results could be similar to. */
export const isSearch = (state) =>
  Boolean(state.q.trim() || state.picture || state.row !== null || state.plus.length);
