// Filters: rows of column, test and value, made from the columns that the index says it has, and typed as they are.

import { $, action, ask, el } from "./dom.js";

const MAX_ROWS = 32;
const LABELS = {
  eq: "is", ne: "is not", in: "is one of", gte: "at least", lte: "at most", gt: "more than", lt: "less than", exists: "has a value",
};
const TIMES = { gte: "since", lte: "until", gt: "after", lt: "before" };
const ORDERED = ["eq", "ne", "in", "gte", "lte", "gt", "lt", "exists"];
const UNORDERED = ["eq", "ne", "in", "exists"];
/** What is chosen and not written: values that are true or false, and whether there is one. */
const TRUTHS = [["true", "true"], ["false", "false"]];
const WHETHER = [["true", "yes"], ["false", "no"]];

/** What values of a kind look like: a reading that gives a value or throws what is wrong, and what to hint at. */
const KINDS = {
  text: { tests: ORDERED, read: (text) => text },
  whole: { tests: ORDERED, read: whole, inputMode: "numeric", hint: "42" },
  number: { tests: ORDERED, read: number, inputMode: "decimal", hint: "0.5" },
  time: { tests: ORDERED, read: time, hint: "2024-01-31" },
  truth: { tests: ["eq", "ne", "exists"], read: truth },
};

function truth(text) {
  return text === "true";
}

function whole(text) {
  if (!/^[+-]?\d+$/.test(text)) throw new Error(`“${text}” is no whole number`);
  if (!Number.isSafeInteger(Number(text))) throw new Error(`${text} has more digits than a browser can count`);
  return Number(text);
}

function number(text) {
  if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) || !Number.isFinite(Number(text))) {
    throw new Error(`“${text}” is no number`);
  }
  return Number(text);
}

function time(text) {
  if (!/^(\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?|\d\d:\d\d(:\d\d(\.\d+)?)?)$/.test(text)) {
    throw new Error(`“${text}” is no date or time; write 2024-01-31 or 2024-01-31T12:00`);
  }
  return text;
}

/** The kind of an Arrow type, of a list's values for a list; lists have no order. */
function kindOf(type) {
  const inner = type.match(/list<[^:]*: ([^>]+?)(?: not null)?>/)?.[1];
  const one = inner || type;
  const name = /^u?int/.test(one) ? "whole" : /^(half|float|double)/.test(one) ? "number"
    : /^(timestamp|date|time)/.test(one) ? "time" : one === "bool" ? "truth" : "text";
  return { ...KINDS[name], name, ...(inner && name !== "truth" ? { tests: UNORDERED } : {}) };
}

let columns = [];
const rows = () => [...$("conditions").children];

/** Learn the columns; payload first, since id and title are seldom asked for. A long text equals nothing. */
export async function loadColumns() {
  const [index] = (await ask("v1/indexes")).data;
  const own = ["id", "title"];
  const usable = index.columns.filter(({ name, filterable }) => filterable && name !== "text");
  columns = usable.sort((a, b) => own.includes(a.name) - own.includes(b.name));
  $("add").disabled = !columns.length;
}

const options = (pairs) => pairs.map(([value, text]) => Object.assign(el("option", "", text), { value }));

/** Add a row, for a condition [column, test, value as text] or an empty one, and return it. */
export function addRow([name, test, value] = []) {
  const column = el("select"), tests = el("select"), place = el("span", "value"), wrong = el("p", "wrong");
  column.append(...options(columns.map((one) => [one.name, one.name])));
  column.value = columns.some((one) => one.name === name) ? name : columns[0].name;
  column.setAttribute("aria-label", "Column");
  wrong.hidden = true;
  wrong.id = `wrong-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  const remove = action("remove", "×", () => {
    const next = row.nextElementSibling || row.previousElementSibling;
    row.remove();
    (next?.querySelector("select") || $("add")).focus();
    $("form").dispatchEvent(new Event("filters"));
  });
  const row = el("li", "condition", column, tests, place, remove, wrong);
  const fill = (chosen, text = "") => {
    const kind = kindOf(columns.find((one) => one.name === column.value).type);
    tests.replaceChildren(...options(kind.tests.map((one) => [one, (kind.name === "time" && TIMES[one]) || LABELS[one]])));
    if (kind.tests.includes(chosen)) tests.value = chosen;
    tests.setAttribute("aria-label", `Test of ${column.value}`);
    remove.setAttribute("aria-label", `Remove the filter on ${column.value}`);
    refill(text);
  };
  const refill = (text) => {
    const { kind } = parts(row);
    place.replaceChildren(valueField(kind, tests.value, column.value, text, wrong.id));
    hint(row);
  };
  column.addEventListener("change", () => fill(tests.value));
  tests.addEventListener("change", () => {
    const { field, test: chosen } = parts(row);
    refill((field.dataset.test === "exists") === (chosen === "exists") ? field.value : "");
  });
  fill(test, value);
  $("conditions").append(row);
  $("add").hidden = rows().length >= MAX_ROWS;
  return row;
}

function valueField(kind, test, name, text, wrongId) {
  const choice = test === "exists" ? WHETHER : kind.name === "truth" ? TRUTHS : null;
  const field = el(choice ? "select" : "input");
  if (choice) {
    field.append(...options(choice));
    field.value = text === "false" ? "false" : "true";
  } else {
    Object.assign(field, { type: "text", value: text, maxLength: 1000, inputMode: kind.inputMode || "text", spellcheck: false });
    field.autocapitalize = "off";
  }
  field.dataset.test = test;
  field.setAttribute("aria-label", `Value of ${name}`);
  field.setAttribute("aria-describedby", wrongId);
  return field;
}

function hint(row) {
  const { kind, test, field } = parts(row);
  if (field.tagName === "INPUT") field.placeholder = test === "in" ? "one, another" : kind.hint || "";
}

function parts(row) {
  const [column, tests] = row.querySelectorAll("select");
  const field = row.querySelector(".value > *");
  return { name: column.value, test: tests.value, field, kind: kindOf(columns.find((one) => one.name === column.value).type) };
}

function mark(row, message) {
  const wrong = row.querySelector(".wrong");
  wrong.textContent = message;
  wrong.hidden = !message;
  parts(row).field.toggleAttribute("aria-invalid", Boolean(message));
}

/** One row's condition; null while it has no value, or when what it has is wrong, which is then said beside it. */
function condition(row, { strict }) {
  const { name, test, field, kind } = parts(row);
  const texts = test === "in" ? field.value.split(",").map((text) => text.trim()).filter(Boolean) : [field.value.trim()];
  mark(row, "");
  if (!texts.length || texts[0] === "") {
    if (strict) mark(row, "Give a value, or remove this filter.");
    return null;
  }
  try {
    const values = texts.map(test === "exists" ? truth : kind.read);
    return { field: name, [test]: test === "in" ? values : values[0] };
  } catch (error) {
    mark(row, `${name}: ${error.message}.`);
    return null;
  }
}

/** The filter of all rows, undefined where they ask nothing; `wrong`: one of them cannot be. strict: nor be empty. */
export function readFilter({ strict = false } = {}) {
  const found = rows().map((row) => condition(row, { strict })).filter(Boolean);
  const wrong = rows().some((row) => !row.querySelector(".wrong").hidden);
  showServerError("");
  $("add").hidden = rows().length >= MAX_ROWS;
  return { wrong, filter: found.length > 1 ? { and: found } : found[0] };
}

/** What the server says of a filter: beside the row that it names, or below them all. */
export function showServerError(message) {
  const text = message.replace(/^filter[^:]*: /, "");
  const row = text && rows().find((one) => text.startsWith(`${parts(one).name} `));
  if (row) mark(row, `${text}.`);
  $("filter-wrong").textContent = row || !text ? "" : `${text}.`;
  $("filter-wrong").hidden = Boolean(row) || !text;
}

/** Rows as they stand in the address: "column test value". */
export function toAddress() {
  return rows().map(parts).filter(({ field }) => field.value.trim()).map(({ name, test, field }) => `${name} ${test} ${field.value.trim()}`);
}

/** Rows from the address; what is of no column of this index is left out, and returned. */
export function fromAddress(texts) {
  const byLength = columns.map(({ name }) => name).sort((a, b) => b.length - a.length);
  return texts.filter((text) => {
    const name = byLength.find((one) => text.startsWith(`${one} `));
    const [, test, value] = name === undefined ? [] : text.slice(name.length + 1).match(/^(\w+) (.*)$/s) || [];
    if (!(test in LABELS) || rows().length >= MAX_ROWS) return true;
    addRow([name, test, value]);
    return false;
  });
}
