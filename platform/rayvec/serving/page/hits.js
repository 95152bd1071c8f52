// One hit as an element: title, excerpt with the query's words marked, where it comes from, how well it fits.
// Whatever comes from the server becomes text nodes, never markup.

import { action, count, el } from "./dom.js";

const EXCERPT = 320;
const SHOWN_CHARACTERS = 20000;
const STOP_WORDS = new Set(("a an and are as at be by can do does for from has have how i if in into is it its no not of on or " +
  "that the then there these this to was were what when where which who will with you").split(" "));

/** One hit: a heading that opens it, an excerpt, where it comes from, and how well it fits. like: asks for others like it. */
export function hitItem(hit, best, find, like) {
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
    item.querySelector(".body > .actions")?.remove();
    if (opened) item.querySelector(".body").append(fields(hit), el("div", "actions", action("", "More like this", () => like(hit.id))));
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
  else if (line !== undefined && line !== null) parts.push(el("span", "", `line ${line}`));
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
  const plain = Array.isArray(value) && value.every((one) => typeof one !== "object");
  const text = plain ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value);
  return text.length > limit ? `${text.slice(0, limit)}…` : text;
}

// Words of the query in the text

/** A pattern for the query's words and their inflections, or null when it has none worth marking. */
export function matcher(query) {
  const words = (query.toLowerCase().match(/[\p{L}\p{M}\p{N}]+/gu) || []).flatMap(pieces);
  const stems = words.filter((word) => (word.length > 1 || SPACELESS.test(word)) && !STOP_WORDS.has(word)).map(stem);
  if (!stems.length) return null;
  const longestFirst = [...new Set(stems)].sort((a, b) => b.length - a.length);
  // Latin words match at a word's start only; other scripts have no spaces to go by.
  return new RegExp(longestFirst.map((s) => (/^[\x00-\x7f]+$/.test(s) ? `(?<![a-zA-Z0-9])${s}[a-z]{0,3}(?![a-z])` : s)).join("|"), "giu");
}

const SCRIPTS = ["Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar"];
const SPACELESS = new RegExp(`([${SCRIPTS.map((name) => `\\p{scx=${name}}`).join("")}]+)`, "u");

/** Of scripts without spaces the whole, and the pairs of characters that the index finds it by; of others the word. */
function pieces(word) {
  return word.split(SPACELESS).filter(Boolean).flatMap((part) => {
    const signs = [...part];
    const pairs = signs.slice(1).map((sign, i) => signs[i] + sign);
    return SPACELESS.test(part) ? [part, ...pairs] : [part];
  });
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
