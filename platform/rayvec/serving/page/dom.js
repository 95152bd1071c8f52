// What all parts of the page use: elements, words for numbers, and questions to the server.

const KEY = "rayvec-key";

export const $ = (id) => document.getElementById(id);

/** An element with classes and children; strings become text. */
export function el(tag, classes = "", ...children) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A button that does something. */
export function action(classes, name, onClick) {
  const button = el("button", classes, name);
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}

export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
export const milliseconds = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en"));
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** Keep the API key, in this tab only. */
export const useKey = (key) => sessionStorage.setItem(KEY, key);

/** The server's answer, or an error with its code, its status and the field that it is about. */
export async function ask(path, body, signal) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const error = new Error(answer.error?.message || `the server answered ${response.status}`);
  throw Object.assign(error, { code: answer.error?.code, param: answer.error?.param, status: response.status });
}

/** What to tell of an error, as a sentence. */
export const reason = (error) => (error instanceof TypeError ? "The server cannot be reached." : sentence(error.message));
