// The filters on the columns that the rows have besides.

import { element } from "/cards.js";

const form = document.getElementById("filters");
const button = document.getElementById("filter");
let others = [];  // conditions of the address that no field has

/** Fills the form with one field for each column; calls back with the conditions. */
export function build(columns, onChange) {
  const usable = columns.filter((column) => column.kind !== "other");
  button.hidden = !usable.length;
  button.addEventListener("click", () => {
    form.hidden = !form.hidden;
    button.setAttribute("aria-expanded", String(!form.hidden));
  });
  form.replaceChildren(...usable.map(field));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => onChange(conditions()));
}

function field(column) {
  const inner = { choice, number, text }[column.kind](column);
  const name = element("span", {}, element("bdi", { textContent: column.name }));
  if (column.kind === "number" && column.least !== null) name.append(`, ${column.least} to ${column.most}`);
  return element("label", {}, name, inner);
}

function input(column, operator, properties) {
  const ariaLabel = `${column.name} ${properties.placeholder}`;
  const made = element("input", { ariaLabel, ...properties });
  [made.dataset.column, made.dataset.operator] = [column.name, operator];
  return made;
}

function choice(column) {
  const made = element("select", {}, element("option", { value: "", textContent: "any" }));
  [made.dataset.column, made.dataset.operator] = [column.name, "="];
  column.values.forEach((value, i) => {
    const words = `${value === "" ? "empty" : value} (${column.counts[i].toLocaleString("en")})`;
    made.append(element("option", { value: chosen(value), textContent: words }));
  });
  return made;
}

function number(column) {
  const bounds = { type: "number", step: "any" };
  return element(
    "span", { className: "bounds" },
    input(column, ">=", { ...bounds, placeholder: "from" }),
    input(column, "<=", { ...bounds, placeholder: "to" }),
  );
}

const text = (column) => input(column, "~", { type: "text", placeholder: "contains" });

const NUMBER = /^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$/;

/** Returns text as a condition has it: in quotes, where it would be taken for more. */
function written(text) {
  const isPlain = /^[^'"<>=!~\s]/.test(text) && text === text.trim();
  const isOne = !/\s(and|or|&&?|\|\|?)\s/i.test(text); // not as further conditions are written
  return isPlain && isOne ? text : `'${text.replaceAll("'", "''")}'`;
}

/** Returns a value of a list likewise; text that looks like a number stays text. */
function chosen(value) {
  const isNumber = typeof value === "string" && NUMBER.test(value);
  return isNumber ? `'${value}'` : written(String(value));
}

/** Returns the text of a value that is written in a condition. */
function read(value) {
  return /^'.*'$/s.test(value) ? value.slice(1, -1).replaceAll("''", "'") : value;
}

// Texts are typed; the options of a list are values as conditions have them already.
const isTyped = (each) => each.dataset.operator === "~";

const fields = () => [...form.querySelectorAll("[data-column]")];

function conditions() {
  const held = fields()
    .filter((each) => each.value.trim())
    .map((each) => {
      const value = each.value.trim();
      return `${each.dataset.column}${each.dataset.operator}${isTyped(each) ? written(value) : value}`;
    });
  return [...held, ...others];
}

/** Puts conditions into the form, such as those of an address. */
export function fill(where) {
  const held = new Set();
  for (const each of fields()) {
    const begin = `${each.dataset.column}${each.dataset.operator}`;
    const condition = where.find((one) => one.startsWith(begin)) ?? begin;
    const found = condition.slice(begin.length);
    const value = isTyped(each) ? read(found) : found;
    if (each.value !== value) each.value = value;
    if (each.value === value) held.add(condition);
  }
  others = where.filter((condition) => !held.has(condition));
  button.textContent = where.length ? `Filters · ${where.length}` : "Filters";
}
