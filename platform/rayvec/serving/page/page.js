// The search page: a query in, hits out, as a list or on a map. The address holds what was asked, so that a search can be
// kept and sent. Whatever comes from the server becomes text nodes, never markup.

import { $, action, ask, count, el, milliseconds, reason, useKey } from "./dom.js";
import * as filters from "./filters.js";
import { hitItem, matcher } from "./hits.js";
import * as map from "./map.js";

const PAGE_SIZE = 10;
const MAX_K = 1000;
const TYPING_PAUSE_MS = 220;
const MAP_TRIES = 5;
const MAP_PAUSE_MS = 700;

const form = $("form"), input = $("query"), list = $("hits"), notice = $("notice"), more = $("more");
const tabs = [$("tab-list"), $("tab-map")];

/** like: the id of the document whose like is searched for, while no query is. */
const state = { k: PAGE_SIZE, shown: "", asked: null, facts: null, like: "" };

const mode = () => form.elements.mode.value;
const instruction = () => $("instruction").value.trim();
const onMap = () => tabs[1].getAttribute("aria-selected") === "true";

// Asking

/** Search for what is in the box, unless that is shown already. strict: a filter without a value is an error. */
async function search({ k = PAGE_SIZE, again = false, strict = false } = {}) {
  const query = input.value.trim();
  if (query) state.like = "";
  const { wrong, filter } = filters.readFilter({ strict });
  remember(query);
  if (wrong) return mend();
  const body = { k, filter, include: ["text", "payload", ...(onMap() ? ["map"] : [])] };
  Object.assign(body, state.like ? { like: [state.like] } : { query, mode: mode() });
  if (instruction() && query && mode() !== "lexical") body.instruction = instruction();
  const wanted = JSON.stringify(body);
  if (wanted === state.shown && !again) return undefined;
  state.asked?.abort();
  state.asked = new AbortController();
  Object.assign(state, { shown: wanted, k });
  if (!query && !state.like) return welcome();
  document.body.classList.add("busy");
  const { signal } = state.asked;
  try {
    show(await answerTo(body, signal), query);
  } catch (error) {
    if (signal.aborted) return undefined;
    state.shown = "";
    fail(error);
  }
  return document.body.classList.remove("busy");
}

/** The answer; for the map one whose hits have their places on the map that is shown, as soon as there is one. */
async function answerTo(body, signal) {
  for (let tries = 1; ; tries++) {
    const answer = await ask("v1/search", body, signal);
    if (!body.include.includes("map") || tries === MAP_TRIES) return answer;
    const version = await map.load(answer.index_version);
    const placed = answer.results[0].hits.every((hit) => hit.map);
    if (!version || (placed && version === answer.index_version)) return answer;
    // It was drawn only now, or another copy of the service answered, which draws its own.
    if (tries > 1) await new Promise((done) => setTimeout(done, MAP_PAUSE_MS));
    signal.throwIfAborted();
  }
}

function remember(query) {
  const asked = new URLSearchParams(query ? { q: query, mode: mode() } : state.like ? { like: state.like } : {});
  for (const text of filters.toAddress()) asked.append("where", text);
  if (instruction()) asked.set("instruction", instruction());
  if (onMap()) asked.set("view", "map");
  const address = new URL(location.href);
  address.search = asked;
  history.replaceState(null, "", address);
  document.title = query ? `${query.slice(0, 60)} · rayvec` : "rayvec search";
  const used = filters.toAddress().length + (instruction() ? 1 : 0);
  $("refined").textContent = String(used);
  $("refined").hidden = !used;
}

// Showing

function show(answer, query) {
  const [{ hits, truncated }] = answer.results;
  const find = matcher(query);
  const best = Math.max(...hits.map((hit) => hit.score), 0);
  notice.hidden = true;
  list.replaceChildren(...hits.map((hit) => hitItem(hit, best, find, searchLike)));
  map.light(hits, openHit);
  more.hidden = hits.length < state.k || state.k >= MAX_K;
  const like = state.like ? ` like ${state.like}` : "";
  $("status").textContent = count(hits.length, "hit") + like + (truncated ? ", for the beginning of a long query" : "") + partly(answer);
  showTiming(answer.timings);
  if (!hits.length) nothingFound(query);
}

/** What is to be said where parts of the vectors did not answer. */
function partly({ coverage, missing_parts: missing }) {
  if (!missing.length) return "";
  return `, among ${Math.floor(100 * coverage)} % of the vectors: ${count(missing.length, "part")} did not answer`;
}

/** Search for documents like one that was found, instead of for a query. */
function searchLike(id) {
  input.value = "";
  state.like = id;
  toTop();
  return search();
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

/** From the map to the hit in the list. */
function openHit(place) {
  choose(tabs[0]);
  const button = list.querySelectorAll(".open")[place];
  if (button.getAttribute("aria-expanded") === "false") button.click();
  button.focus({ preventScroll: true });
  button.closest(".hit").scrollIntoView({ block: "nearest" });
}

/** Change between list and map. */
function choose(tab) {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", String(chosen));
    one.tabIndex = chosen ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  document.body.classList.toggle("on-map", onMap());
  if (!onMap()) return remember(input.value.trim());
  map.draw();
  if (input.value.trim() || state.like) return search({ k: state.k });
  remember("");
  return map.load().then(map.draw, fail);
}

function unfold(open = $("refining").hidden) {
  $("refining").hidden = !open;
  form.classList.toggle("unfolded", open);
  $("refine").setAttribute("aria-expanded", String(open));
}

// Where no hits stand

function say(kind, heading, ...rest) {
  notice.className = `notice ${kind}`;
  notice.replaceChildren(el("h2", "", heading), ...rest);
  notice.hidden = false;
}

function clear() {
  list.replaceChildren();
  map.light([], openHit);
  more.hidden = true;
  notice.hidden = true;
  $("timing").hidden = true;
  $("status").textContent = "";
  document.body.classList.remove("busy");
}

function welcome() {
  clear();
  const documents = state.facts ? `Search ${count(state.facts.documents, "document")}` : "Search";
  say("welcome", documents, el("p", "", "by meaning, by words, or by both at once. Ask as you would ask a colleague."));
}

/** A filter that cannot be: nothing is shown that would pass for what was asked. */
function mend() {
  state.asked?.abort();
  state.shown = "";
  clear();
  unfold(true);
  $("status").textContent = "Correct the filter first.";
}

function nothingFound(query) {
  if (state.like) return say("", "Nothing like it", el("p", "", "No other document passes the filters."));
  const shown = query.length > 80 ? `${query.slice(0, 80)}…` : query;
  const hint = filters.toAddress().length ? "Try other words, or fewer filters." : "Try other words.";
  if (mode() !== "lexical") return say("", `Nothing found for “${shown}”`, el("p", "", hint));
  const button = action("", "Search by meaning too", () => setMode("hybrid"));
  say("", `No document shares a word with “${shown}”`, el("p", "", "Lexical search finds words as they are written."), el("div", "actions", button));
}

function fail(error) {
  clear();
  if (error.status === 401) return askForKey();
  if (error.status === 422 && error.param?.startsWith("filter")) {
    unfold(true);
    filters.showServerError(error.message);
    $("status").textContent = "Correct the filter first.";
    return undefined;
  }
  const button = action("", "Try again", () => search({ k: state.k, again: true }));
  return say("bad", error.status === 429 ? "Too busy at the moment" : "That did not work", el("p", "", reason(error)), el("div", "actions", button));
}

function askForKey() {
  const field = el("input");
  Object.assign(field, { type: "password", name: "key", required: true, placeholder: "rv-…", autocomplete: "current-password" });
  field.setAttribute("aria-label", "API key");
  const keyForm = el("form", "", field, el("button", "", "Use key"));
  keyForm.addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(field.value.trim());
    begin();
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
  const buttons = [...(onMap() ? $("legend").querySelectorAll("button") : list.querySelectorAll(".open"))];
  const here = document.activeElement;
  const at = buttons.indexOf(here.closest(".hit")?.querySelector(".open") || here);
  if (at + step < 0) return toQuery();
  const next = buttons[Math.min(at + step, buttons.length - 1)];
  next?.focus({ preventScroll: true });
  next?.closest("li").scrollIntoView({ block: "nearest" });
}

function toQuery() {
  input.focus();
  input.select();
  toTop();
}

function toTop() {
  scrollTo({ top: 0 });
}

function toFilters() {
  unfold(true);
  if (!$("conditions").children.length && !$("add").disabled) filters.addRow();
  ($("conditions").querySelector("select") || $("instruction")).focus();
}

const EVERYWHERE = { Escape: toQuery };
const OUTSIDE_THE_QUERY = {
  "/": toQuery, j: () => move(1), k: () => move(-1), m: nextMode, f: toFilters,
  v: () => choose(tabs[onMap() ? 0 : 1]),
};
const ARROWS = { ArrowDown: () => move(1), ArrowUp: () => move(-1) };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const { target } = event;
  const typing = target.matches("input:not([type=radio])");
  const elsewhere = (typing && target !== input) || target.matches(".opened .text, select");
  const actions = elsewhere ? EVERYWHERE : { ...EVERYWHERE, ...(target.type === "radio" ? {} : ARROWS), ...(typing ? {} : OUTSIDE_THE_QUERY) };
  const act = actions[event.key];
  if (!act || (target === input && event.key === "ArrowUp")) return;
  event.preventDefault();
  act();
});

let pause = 0;
const soon = () => {
  clearTimeout(pause);
  pause = setTimeout(search, TYPING_PAUSE_MS);
};
form.addEventListener("input", (event) => {
  if (event.target.name !== "mode") soon();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(pause);
  search({ strict: true });
});
form.addEventListener("change", (event) => {
  if (event.target.name === "mode") search();
});
form.addEventListener("filters", () => search());
more.addEventListener("click", async () => {
  const first = list.children.length;
  await search({ k: Math.min(state.k + PAGE_SIZE, MAX_K) });
  list.children[first]?.querySelector(".open").focus();
});
$("refine").addEventListener("click", () => unfold());
$("add").addEventListener("click", () => filters.addRow().querySelector("select").focus());
for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", ({ key }) => {
    if (!/^(Arrow(Left|Right)|Home|End)$/.test(key)) return;
    const other = tabs[key === "Home" ? 0 : key === "End" ? 1 : 1 - tabs.indexOf(tab)];
    choose(other);
    other.focus();
  });
}

// Start

/** Take what the address asks; its filters too, as soon as the columns are known. */
async function begin() {
  const asked = new URLSearchParams(location.search);
  input.value = asked.get("q") || "";
  $("instruction").value = asked.get("instruction") || "";
  state.like = input.value ? "" : asked.get("like") || "";
  const wanted = [...form.elements.mode].find((choice) => choice.value === asked.get("mode"));
  if (wanted) wanted.checked = true;
  const facts = Promise.all([ask("ready").then((ready) => showFacts(ready, !wanted)), ask("v1/models").then(showModel)]);
  const where = asked.getAll("where");
  try {
    const columns = filters.loadColumns();
    if (where.length) {
      await columns;
      $("conditions").replaceChildren();
      const unknown = filters.fromAddress(where);
      $("left-out").textContent = `Left out, since this index has no such column: ${unknown.join("; ")}.`;
      $("left-out").hidden = !unknown.length;
    }
    if (where.length || instruction()) unfold(true);
    if (asked.get("view") === "map") choose(tabs[1]);
    else if (input.value || state.like) search();
    await Promise.all([facts, columns]);
  } catch (error) {
    return fail(error);
  }
  return input.value || state.like ? undefined : welcome();
}

/** choosesMode: whether the service's own mode is taken. */
function showFacts(facts, choosesMode) {
  state.facts = facts;
  const { documents, index_version: version, model, modes, mode: usual } = facts;
  $("facts").textContent = `${count(documents, "document")} · ${model} · ${version}`;
  for (const choice of form.elements.mode) choice.disabled = !modes.includes(choice.value);
  if ([...form.elements.mode].some((choice) => choice.checked && choice.disabled)) setMode(modes[0]);
  if (choosesMode && mode() !== usual) setMode(usual);
}

/** What is read before a query, where the page gives no instruction. */
function showModel({ data: [{ instructions }] }) {
  if (instructions.query) $("instruction").placeholder = instructions.query;
}

begin();
