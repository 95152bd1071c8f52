// The search page: a query in, hits out. The address holds query and mode, so that a search can be kept and sent.
// Whatever comes from the server becomes text nodes, never markup.

const PAGE_SIZE = 10;
const MAX_K = 1000;
const TYPING_PAUSE_MS = 220;
const EXCERPT = 320;
const SHOWN_CHARACTERS = 20000;
const STOP_WORDS = new Set(("a an and are as at be by can do does for from has have how i if in into is it its no not of on or " +
  "that the then there these this to was were what when where which who will with you").split(" "));

const $ = (id) => document.getElementById(id);
const form = $("form"), input = $("query"), list = $("hits"), notice = $("notice"), more = $("more");

const state = { key: sessionStorage.getItem("rayvec-key") || "", k: PAGE_SIZE, shown: "", asked: null, facts: null };

/** An element with classes and children; strings become text. */
function el(tag, classes = "", ...children) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const mode = () => form.elements.mode.value;
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const milliseconds = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en"));

// Asking

async function ask(path, body, signal) {
  const headers = { "content-type": "application/json" };
  if (state.key) headers.authorization = `Bearer ${state.key}`;
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const error = new Error(answer.error?.message || `the server answered ${response.status}`);
  throw Object.assign(error, { code: answer.error?.code, status: response.status });
}

/** Search for what is in the box, unless that is shown already. */
async function search({ k = PAGE_SIZE, again = false } = {}) {
  const query = input.value.trim();
  const wanted = JSON.stringify([query, mode(), k]);
  if (wanted === state.shown && !again) return;
  state.asked?.abort();
  state.asked = new AbortController();
  state.shown = wanted;
  state.k = k;
  remember(query);
  if (!query) return welcome();
  document.body.classList.add("busy");
  const { signal } = state.asked;
  try {
    show(await ask("v1/search", { query, k, mode: mode() }, signal), query);
  } catch (error) {
    if (signal.aborted) return;
    state.shown = "";
    fail(error);
  }
  document.body.classList.remove("busy");
}

function remember(query) {
  const address = new URL(location.href);
  address.search = query ? new URLSearchParams({ q: query, mode: mode() }) : "";
  history.replaceState(null, "", address);
  document.title = query ? `${query.slice(0, 60)} · rayvec` : "rayvec search";
}

// Showing

function show(answer, query) {
  const [{ hits, truncated }] = answer.results;
  const find = matcher(query);
  const best = Math.max(...hits.map((hit) => hit.score), 0);
  notice.hidden = true;
  list.replaceChildren(...hits.map((hit) => hitItem(hit, best, find)));
  more.hidden = hits.length < state.k || state.k >= MAX_K;
  $("status").textContent = count(hits.length, "hit") + (truncated ? ", for the beginning of a long query" : "");
  showTiming(answer.timings);
  if (!hits.length) nothingFound(query);
}

function showTiming({ encode_ms: encode, search_ms: search, total_ms: total }) {
  const parts = encode ? [["encode", encode], ["search", search]] : [["search", search]];
  const split = el("span", "split");
  for (const [name, ms] of parts) {
    const part = el("i", name);
    part.style.flex = String(Math.max(ms, total / 50));
    split.append(part);
  }
  const words = parts.map(([name, ms]) => `${name} ${milliseconds(ms)}`).join(" · ");
  $("timing").replaceChildren(split, `${words} · total ${milliseconds(total)} ms`);
  $("timing").hidden = false;
}

/** One hit: a heading that opens it, an excerpt, where it comes from, and how well it fits. */
function hitItem(hit, best, find) {
  const open = title(hit, find);
  open.setAttribute("aria-expanded", "false");
  const text = el("div", "text");
  const item = el("li", "hit",
    el("span", "rank", String(hit.rank)),
    el("div", "body", el("h2", "", open), text, meta(hit.payload || {})),
    score(hit, best));
  const draw = (opened) => {
    item.classList.toggle("opened", opened);
    open.setAttribute("aria-expanded", String(opened));
    text.classList.toggle("is-code", /^\s{2,}\S|>>> |::|^\S+ : /m.test(hit.text || ""));
    text.replaceChildren(...marked(opened ? whole(hit.text || "") : excerpt(hit.text || "", find), find));
    text.hidden = !hit.text;
    text.tabIndex = opened ? 0 : -1;
    item.querySelector(".fields")?.remove();
    if (opened) item.querySelector(".body").append(fields(hit));
  };
  open.addEventListener("click", () => draw(!item.classList.contains("opened")));
  draw(false);
  return item;
}

/** A signature is set as code, its own name in front; any other title as plain words. */
function title(hit, find) {
  const shown = hit.title || hit.id;
  const button = el("button");
  button.type = "button";
  const isCode = shown.startsWith(hit.id) && /^[\w.]+$/.test(hit.id) && hit.id.includes(".") || /^[\w.]+\(.*\)/.test(shown);
  if (!isCode) {
    button.className = "open plain";
    button.append(...marked(shown, find));
    return button;
  }
  const path = (shown.match(/^[\w.]+/) || [shown])[0];
  const cut = path.lastIndexOf(".") + 1;
  button.className = "open code";
  const above = path.slice(0, cut).split(/(?<=\.)/).flatMap((part) => [part, el("wbr")]);
  button.append(el("span", "clip", ...above, el("span", "name", path.slice(cut)), el("wbr"), shown.slice(path.length)));
  return button;
}

function meta(payload) {
  const { package: name, version, kind, file, line, ...rest } = payload;
  const parts = [];
  if (name) parts.push(el("span", "", version ? `${name} ${version}` : String(name)));
  if (kind) parts.push(el("span", "", String(kind)));
  if (file) parts.push(el("span", "where", line ? `${file}:${line}` : String(file)));
  else if (line !== undefined) rest.line = line;
  for (const [key, value] of Object.entries(rest).slice(0, 4)) {
    if (value !== null && value !== "") parts.push(el("span", "", `${key} ${brief(value)}`));
  }
  const row = el("div", "meta", ...parts);
  row.hidden = !parts.length;
  return row;
}

function score(hit, best) {
  const bar = el("i");
  bar.style.width = `${best > 0 ? Math.max(4, Math.round((100 * hit.score) / best)) : 4}%`;
  const signals = Object.entries(hit.signals).map(([name, { rank }]) => [el("span", "", `${name} `, el("b", "", `#${rank}`))]);
  const found = signals.flatMap((part, i) => (i ? [" · ", ...part] : part));
  const number = el("span", "number", hit.score.toFixed(hit.score < 10 ? 3 : 1));
  number.title = "score";
  return el("div", "score", number, el("span", "gauge", bar), found.length ? el("span", "signals", ...found) : null);
}

function fields(hit) {
  const found = Object.entries(hit.signals).map(([name, { rank, score: value }]) => [name, `#${rank}, score ${value.toFixed(4)}`]);
  const rows = [["id", hit.id], ...Object.entries(hit.payload || {}), ...found].filter(([, value]) => value !== null);
  return el("dl", "fields", ...rows.flatMap(([name, value]) => [el("dt", "", name), el("dd", "", brief(value, 2000))]));
}

function brief(value, limit = 60) {
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return text.length > limit ? `${text.slice(0, limit)}…` : text;
}

// Words of the query in the text

/** A pattern for the query's words and their inflections, or null when it has none worth marking. */
function matcher(query) {
  const words = query.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];
  const stems = words.filter((word) => word.length > 1 && !STOP_WORDS.has(word)).map(stem);
  if (!stems.length) return null;
  const longestFirst = [...new Set(stems)].sort((a, b) => b.length - a.length);
  // Latin words match at a word's start only; other scripts have no spaces to go by.
  return new RegExp(longestFirst.map((s) => (/^[\x00-\x7f]+$/.test(s) ? `(?<![a-zA-Z0-9])${s}[a-z]{0,3}(?![a-z])` : s)).join("|"), "giu");
}

function stem(word) {
  const cut = word.replace(/(ing|ed|es|s|e)$/, "");
  return cut.length > 2 ? cut : word;
}

/** Text as nodes, the query's words in <mark>. */
function marked(text, find) {
  if (!find) return [text];
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(find)) {
    nodes.push(text.slice(end, match.index), el("mark", "", match[0]));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)];
}

/** The stretch of the text that holds the most different words of the query; its beginning when none does better. */
function excerpt(text, find) {
  // Lines under headings and interpreter prompts mean something only where lines are kept.
  const plain = text.slice(0, SHOWN_CHARACTERS).replace(/^\s*[-=~^]{3,}\s*$|^\s*(?:>>>|\.\.\.)(?= |$)/gm, " ");
  const line = plain.replace(/\s+/g, " ").trim();
  if (!find || line.length <= EXCERPT) return line;
  const matches = [...line.matchAll(find)].map((match) => [match.index, match[0].toLowerCase().slice(0, 4)]);
  const worth = (start) => new Set(matches.filter(([at]) => at >= start && at < start + EXCERPT).map(([, word]) => word)).size;
  let start = 0, most = worth(0);
  for (const [at] of matches) {
    const here = Math.max(0, at - 60);
    if (worth(here) > most) [start, most] = [here, worth(here)];
  }
  if (start === 0) return line.slice(0, 2 * EXCERPT);
  const word = line.indexOf(" ", start) + 1;
  return `… ${line.slice(word, word + 2 * EXCERPT)}`;
}

function whole(text) {
  const hidden = text.length - SHOWN_CHARACTERS;
  return hidden > 0 ? `${text.slice(0, SHOWN_CHARACTERS)}\n… ${count(hidden, "more character")}` : text;
}

// Where no hits stand

function say(kind, heading, ...rest) {
  notice.className = `notice ${kind}`;
  notice.replaceChildren(el("h2", "", heading), ...rest);
  notice.hidden = false;
}

function clear() {
  list.replaceChildren();
  more.hidden = true;
  $("timing").hidden = true;
  $("status").textContent = "";
  document.body.classList.remove("busy");
}

function welcome() {
  clear();
  const documents = state.facts ? `Search ${count(state.facts.documents, "document")}` : "Search";
  say("", documents, el("p", "", "by meaning, by words, or by both at once. Ask as you would ask a colleague."));
}

function nothingFound(query) {
  const shown = query.length > 80 ? `${query.slice(0, 80)}…` : query;
  if (mode() !== "lexical") return say("", `Nothing found for “${shown}”`, el("p", "", "Try other words."));
  const button = el("button", "", "Search by meaning too");
  button.type = "button";
  button.addEventListener("click", () => setMode("hybrid"));
  say("", `No document shares a word with “${shown}”`, el("p", "", "Lexical search finds words as they are written."), el("div", "actions", button));
}

function fail(error) {
  clear();
  if (error.status === 401) return askForKey();
  const button = el("button", "", "Try again");
  button.type = "button";
  button.addEventListener("click", () => search({ k: state.k, again: true }));
  const reason = error instanceof TypeError ? "The server cannot be reached." : sentence(error.message);
  say("bad", error.status === 429 ? "Too busy at the moment" : "That did not work", el("p", "", reason), el("div", "actions", button));
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function askForKey() {
  const field = el("input");
  Object.assign(field, { type: "password", name: "key", required: true, placeholder: "rv-…", autocomplete: "current-password" });
  field.setAttribute("aria-label", "API key");
  const keyForm = el("form", "", field, el("button", "", "Use key"));
  keyForm.addEventListener("submit", (event) => {
    event.preventDefault();
    state.key = field.value.trim();
    sessionStorage.setItem("rayvec-key", state.key);
    search({ again: true });
  });
  say("", "This service asks for an API key", el("p", "", "It is kept in this tab only."), keyForm);
  field.focus();
}

// Keys and events

function setMode(value) {
  const radio = [...form.elements.mode].find((choice) => choice.value === value);
  if (radio.disabled) return;
  radio.checked = true;
  search();
}

function nextMode() {
  const choices = [...form.elements.mode].filter((choice) => !choice.disabled);
  const at = choices.findIndex((choice) => choice.checked);
  setMode(choices[(at + 1) % choices.length].value);
}

function move(step) {
  const buttons = [...list.querySelectorAll(".open")];
  const at = buttons.indexOf(document.activeElement.closest(".hit")?.querySelector(".open"));
  if (at + step < 0) return toQuery();
  const next = buttons[Math.min(at + step, buttons.length - 1)];
  next?.focus({ preventScroll: true });
  next?.closest(".hit").scrollIntoView({ block: "nearest" });
}

function toQuery() {
  input.focus();
  input.select();
  scrollTo({ top: 0 });
}

const EVERYWHERE = { Escape: toQuery };
const OUTSIDE_THE_QUERY = { "/": toQuery, j: () => move(1), k: () => move(-1), m: nextMode };
const ARROWS = { ArrowDown: () => move(1), ArrowUp: () => move(-1) };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const { target } = event;
  const typing = target.matches("input:not([type=radio])");
  const elsewhere = typing && target !== input || target.matches(".opened .text");
  const actions = elsewhere ? EVERYWHERE : { ...EVERYWHERE, ...(target.type === "radio" ? {} : ARROWS), ...(typing ? {} : OUTSIDE_THE_QUERY) };
  const action = actions[event.key];
  if (!action || (target === input && event.key === "ArrowUp")) return;
  event.preventDefault();
  action();
});

let pause = 0;
input.addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(search, TYPING_PAUSE_MS);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(pause);
  search();
});
form.addEventListener("change", (event) => {
  if (event.target.name === "mode") search();
});
more.addEventListener("click", async () => {
  const first = list.children.length;
  await search({ k: Math.min(state.k + PAGE_SIZE, MAX_K) });
  list.children[first]?.querySelector(".open").focus();
});

// Start

async function start() {
  const asked = new URLSearchParams(location.search);
  input.value = asked.get("q") || "";
  const wanted = [...form.elements.mode].find((choice) => choice.value === asked.get("mode"));
  if (wanted) wanted.checked = true;
  if (input.value) search();
  try {
    state.facts = await ask("ready");
  } catch (error) {
    if (!input.value) fail(error);
    return;
  }
  const { documents, index_version: version, model, modes } = state.facts;
  $("facts").textContent = `${count(documents, "document")} · ${model} · ${version}`;
  for (const choice of form.elements.mode) choice.disabled = !modes.includes(choice.value);
  if (form.elements.mode.value && [...form.elements.mode].some((c) => c.checked && c.disabled)) setMode(modes[0]);
  if (!input.value) welcome();
}

start();
