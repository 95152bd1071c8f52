// The map: a sample of the documents as points of a plane, and the hits of the current search lit on it.

import { $, action, ask, count, el, reason } from "./dom.js";

const MARGIN = 22;
const NEAR = 14;
const ZOOM = 1.6;
const MOST_ZOOM = 40;

const canvas = $("canvas"), tip = $("tip"), caption = $("caption"), legend = $("legend");
const state = { map: null, loading: null, hits: [], lit: -1, scale: 1, x: 0, y: 0, open: () => {} };
let colours = {};

/** Fetch the map, unless this version's is here. Returns its version, or null where there is none to be had. */
export async function load(version) {
  if (state.map && (!version || state.map.index_version === version)) return state.map.index_version;
  if (!state.map) caption.textContent = "Drawing the map …";
  state.loading ||= ask("v1/map").finally(() => (state.loading = null));
  try {
    state.map = await state.loading;
  } catch (error) {
    caption.replaceChildren(`The map cannot be shown. ${reason(error)} `, action("again", "Try again", () => load(version).then(draw)));
    if (error.status === 401) throw error;
    return null;
  }
  const { ids, documents, explained } = state.map;
  const share = ids.length < documents ? `${count(ids.length, "document")} of ${documents.toLocaleString("en")}, drawn at random` : count(documents, "document");
  caption.textContent = `${share}, on the plane on which their vectors vary most: it keeps ${Math.round(100 * explained)} % of the variance. What is near in full may lie apart here, and the reverse.`;
  return state.map.index_version;
}

/** Light the hits of a search; `open` is called with the place of one that is chosen. */
export function light(hits, open) {
  Object.assign(state, { hits, open, lit: -1 });
  tip.hidden = true;
  const had = [...legend.children].findIndex((item) => item.contains(document.activeElement));
  legend.replaceChildren(...hits.map((hit, place) => {
    const button = action("", "", () => state.open(place));
    button.append(el("b", "", String(hit.rank)), el("span", "", hit.title || hit.id));
    button.addEventListener("focus", () => point(place, true));
    button.addEventListener("blur", () => point(-1));
    button.addEventListener("pointerenter", () => point(place));
    button.addEventListener("pointerleave", () => point(-1));
    return el("li", "", button);
  }));
  draw();
  legend.children[had]?.firstChild.focus({ preventScroll: true });
}

/** Draw it, at the size that it has now. */
export function draw() {
  const { width, height } = canvas.getBoundingClientRect();
  const sharp = window.devicePixelRatio || 1;
  if (!width) return;
  Object.assign(canvas, { width: Math.round(width * sharp), height: Math.round(height * sharp) });
  const paint = canvas.getContext("2d");
  paint.scale(sharp, sharp);
  paint.clearRect(0, 0, width, height);
  if (!state.map) return;
  colours = Object.fromEntries(["dot", "accent", "card", "ink"].map((name) => [name, getComputedStyle(canvas).getPropertyValue(`--${name}`)]));
  const to = screen(width, height);
  paint.fillStyle = colours.dot;
  const few = state.map.x.length < 500;
  const size = Math.min(2.6, (width < 500 ? 1.1 : 1.5) * Math.sqrt(state.scale)) + (few ? 1.2 : 0);
  paint.globalAlpha = few ? 0.9 : 0.7;
  paint.beginPath();
  state.map.x.forEach((x, i) => disc(paint, to([x, state.map.y[i]]), size));
  paint.fill();
  paint.globalAlpha = 1;
  for (let place = state.hits.length - 1; place >= 0; place--) if (place !== state.lit) hit(paint, to, place);
  if (state.lit >= 0 && state.hits[state.lit]) hit(paint, to, state.lit);
  canvas.setAttribute("aria-label", label());
}

function label() {
  const lit = state.hits.filter((one) => one.map).length;
  return `Map of ${count(state.map.ids.length, "document")}; ${lit ? `${count(lit, "hit")} lit, listed below` : "no hits lit"}`;
}

function disc(paint, [x, y], radius) {
  paint.moveTo(x + radius, y);
  paint.arc(x, y, radius, 0, 7);
}

function hit(paint, to, place) {
  const { map: at, rank } = state.hits[place];
  if (!at) return;
  const big = place === state.lit, [x, y] = to(at);
  paint.beginPath();
  disc(paint, [x, y], big ? 12 : 5.5);
  paint.fillStyle = colours.accent;
  paint.strokeStyle = big ? colours.ink : colours.card;
  paint.lineWidth = 2;
  paint.fill();
  paint.stroke();
  if (!big) return;
  Object.assign(paint, { fillStyle: colours.card, font: "600 12px system-ui, sans-serif", textAlign: "center", textBaseline: "middle" });
  paint.fillText(String(rank), x, y + 0.5);
}

/** From the plane to the canvas: the whole of it fits, both axes alike, then zoomed and moved. */
function screen(width, height) {
  const { map } = state;
  map.box ||= [Math.min(...map.x), Math.max(...map.x), Math.min(...map.y), Math.max(...map.y)];
  const [left, right, bottom, top] = map.box;
  const fit = Math.min((width - 2 * MARGIN) / (right - left || 1), (height - 2 * MARGIN) / (top - bottom || 1)) * state.scale;
  const middle = [(left + right) / 2 + state.x, (bottom + top) / 2 + state.y];
  const to = ([x, y]) => [width / 2 + (x - middle[0]) * fit, height / 2 - (y - middle[1]) * fit];
  return Object.assign(to, { fit });
}

/** Light one hit above the others, and bring it into view if it was chosen by key. */
function point(place, center = false) {
  state.lit = place;
  const at = state.hits[place]?.map;
  if (at && center && state.scale > 1) {
    const [left, right, bottom, top] = state.map.box;
    [state.x, state.y] = [at[0] - (left + right) / 2, at[1] - (bottom + top) / 2];
  }
  draw();
  if (at && state.map) say(here()(at), state.hits[place].title || state.hits[place].id);
  else tip.hidden = true;
}

function here() {
  const { width, height } = canvas.getBoundingClientRect();
  return screen(width, height);
}

function say([x, y], text) {
  tip.textContent = text;
  tip.hidden = false;
  const room = canvas.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(x - tip.offsetWidth / 2, room))}px`;
  tip.style.top = `${y > tip.offsetHeight + 26 ? y - tip.offsetHeight - 18 : y + 18}px`;
}

/** What lies under a point of the canvas: a hit before any other document. */
function under(x, y) {
  const to = here();
  const nearest = (points) => points.reduce((best, at, i) => {
    const [px, py] = at ? to(at) : [Infinity, Infinity];
    const far = Math.hypot(px - x, py - y);
    return far < best.far ? { i, far } : best;
  }, { i: -1, far: NEAR }).i;
  const place = nearest(state.hits.map((one) => one.map));
  return place >= 0 ? { place } : { document: nearest(state.map.x.map((px, i) => [px, state.map.y[i]])) };
}

function hover(event) {
  if (!state.map) return;
  const { place = -1, document: i = -1 } = under(event.offsetX, event.offsetY);
  canvas.style.cursor = place >= 0 ? "pointer" : "";
  if (place !== state.lit) point(place);
  if (place < 0 && i >= 0) say(here()([state.map.x[i], state.map.y[i]]), state.map.titles[i] || state.map.ids[i]);
  else if (place < 0) tip.hidden = true;
}

function zoom(factor, [fx, fy] = [0.5, 0.5]) {
  if (!state.map) return;
  const { width, height } = canvas.getBoundingClientRect();
  const before = screen(width, height).fit;
  state.scale = Math.min(MOST_ZOOM, Math.max(1, state.scale * factor));
  const after = screen(width, height).fit;
  // What is under the pointer stays there.
  state.x += (fx - 0.5) * width * (1 / before - 1 / after);
  state.y -= (fy - 0.5) * height * (1 / before - 1 / after);
  settle();
}

function settle() {
  if (state.scale === 1) Object.assign(state, { x: 0, y: 0 });
  canvas.classList.toggle("zoomed", state.scale > 1);
  $("zoom-out").disabled = $("zoom-all").disabled = state.scale === 1;
  $("zoom-in").disabled = state.scale === MOST_ZOOM;
  tip.hidden = true;
  draw();
}

let held = null;
canvas.addEventListener("pointerdown", (event) => {
  held = { x: event.clientX, y: event.clientY, moved: false };
  hover(event);
});
canvas.addEventListener("pointermove", (event) => {
  if (!held || !event.buttons || state.scale === 1) return hover(event);
  const [dx, dy] = [event.clientX - held.x, event.clientY - held.y];
  if (!held.moved && Math.hypot(dx, dy) < 4) return undefined;
  const { fit } = here();
  state.x -= dx / fit;
  state.y += dy / fit;
  held = { x: event.clientX, y: event.clientY, moved: true };
  canvas.setPointerCapture(event.pointerId);
  return settle();
});
canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && point(-1));
canvas.addEventListener("click", (event) => {
  const moved = held?.moved;
  held = null;
  if (!state.map || moved) return;
  const { place } = under(event.offsetX, event.offsetY);
  // A finger sees the title first, and opens the hit by the list below.
  if (place >= 0 && event.pointerType === "mouse") state.open(place);
});
canvas.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return; // the wheel alone moves the page
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, [event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight]);
}, { passive: false });
canvas.addEventListener("dblclick", (event) => {
  zoom(ZOOM, [event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight]);
});
$("zoom-in").addEventListener("click", () => zoom(ZOOM));
$("zoom-out").addEventListener("click", () => zoom(1 / ZOOM));
$("zoom-all").addEventListener("click", () => zoom(0));
new ResizeObserver(draw).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
