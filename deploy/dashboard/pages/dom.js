// Builds and changes elements. Text is always set as text, so data can never become markup.

/** An element. Properties: on… are listeners, true and false set or leave out an attribute, the rest are attributes. */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Changes the text only when it differs, so that screen readers and selections are left alone. */
export function setText(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Calls `work` now and `ms` after each end, only while the tab is visible, until the signal is aborted. */
export function repeat(work, ms, signal) {
  let timer = 0;
  let working = false;
  const next = async () => {
    if (working || signal.aborted) return;
    clearTimeout(timer);
    working = true;
    if (!document.hidden) await work().catch((error) => "status" in error || console.error(error)); // the API's errors pass
    working = false;
    if (!signal.aborted) timer = setTimeout(next, ms);
  };
  signal.addEventListener("abort", () => clearTimeout(timer));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) next(); }, { signal });
  return next();
}

/** What is remembered in this browser. */
export function remembered(key, otherwise) {
  try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; }
}

export function remember(key, value) {
  try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* private windows may refuse */ }
}

/** A button that asks once, in its place, before it acts. */
export function askedButton(label, question, act, yesLabel = "Yes") {
  const place = h("span", { class: "asked" });
  const button = h("button", { type: "button", onclick: ask }, label);
  function ask() {
    const no = h("button", { type: "button", onclick: () => { place.replaceChildren(button); button.focus(); } }, "No");
    const yes = h("button", { type: "button", class: "danger", onclick: () => { place.replaceChildren(button); act(); } }, yesLabel);
    place.replaceChildren(h("span", {}, question), yes, no);
    no.focus();
  }
  place.append(button);
  return place;
}
