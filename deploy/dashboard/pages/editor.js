// Draws and changes the lines and zones of one source.
import { at, get, mayEdit, post, put, remove } from "./api.js";
import { askedButton, h, repeat, setText, svg } from "./dom.js";
import { aspectOf, paint, widthFor } from "./draw.js";
import { duration, number, plural } from "./format.js";
import { beside, intoFrame, nextPoint, otherSide } from "./geometry.js";
import { ONE, makeOverlay } from "./overlay.js";
import { watch } from "./live.js";

const NAME = /^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$/;
const TRY_MS = 400;
const PERSON = 0.25; // height of a person, share of the picture, while nobody is in it
const NEW = {
  lines: { points: [], inside: null, anchor: "feet", band: 0.15, count: "crossings" },
  zones: { points: [], anchor: "feet", enter_s: 0.5, leave_s: 1 },
};
const ANCHORS = { feet: "the feet", centre: "the centre of the person", head: "the head" };
const LEAST = { lines: 2, zones: 3 }; // points
const kept = new Map(); // source -> draft: survives a look at another page

export async function show(main, signal, name) {
  document.title = `Lines of ${name} – peoplecounter`;
  let source = await get(at`sources/${name}`, signal);
  let draft = kept.get(name) ?? null; // { kind, name, saved, adding, chosen, shape }
  let personHeight = PERSON; // share of the picture's height
  let [tries, timer] = [0, 0];

  const canvas = h("canvas", { role: "img", "aria-label": `Picture of ${name}` });
  const overlay = makeOverlay({
    shapes: () => source, draft: () => draft, personHeight: () => personHeight, aspect: () => aspectOf(source),
    editable, choose, addPoint, movePoint, removePoint,
  });
  const stage = h("div", { class: "picture stage" }, canvas, overlay.element);
  const still = h("input", { type: "checkbox" });
  const help = h("p", { class: "hint" });
  const list = h("ul", { class: "shape-list" });
  const form = h("form", { class: "shape-form", onsubmit: save, novalidate: true });
  const buttons = h("div", { class: "row" },
    h("button", { type: "button", onclick: () => begin("lines") }, "Add line"), h("button", { type: "button", onclick: () => begin("zones") }, "Add zone"));
  main.append(
    h("div", { class: "page-head" }, h("h1", {}, `Lines and zones of ${name}`),
      h("a", { class: "button", href: `#/camera/${encodeURIComponent(name)}` }, "Back to the camera")),
    h("div", { class: "split" },
      h("div", {}, stage, h("div", { class: "switches" }, h("label", { class: "switch" }, still, "Still picture")), help),
      h("aside", { class: "side" }, list, mayEdit() ? buttons : h("p", { class: "hint" }, "You have view access only."), form)));
  canvas.style.aspectRatio = aspectOf(source);
  stage.style.setProperty("--aspect", aspectOf(source));

  const unwatch = watch(name, widthFor(canvas, 1280), 5, (head, picture) => {
    if (still.checked) return;
    paint(canvas, head, picture, { boxes: true });
    const heights = head.boxes.map(([, y1, , y2]) => (y2 - y1) / head.height).sort((a, b) => a - b);
    const typical = heights.length ? heights[heights.length >> 1] : PERSON;
    if (Math.abs(typical - personHeight) < 0.05 * personHeight) return;
    personHeight = typical;
    overlay.draw();
  });
  const resized = new ResizeObserver(overlay.draw);
  resized.observe(stage);
  signal.addEventListener("abort", () => {
    unwatch();
    resized.disconnect();
    clearTimeout(timer);
    if (draft) kept.set(name, draft);
    else kept.delete(name);
  });
  await repeat(async () => {
    source = await get(at`sources/${name}`, signal);
    showList();
    overlay.draw();
  }, 5000, signal);
  showAll();

  // What is edited

  function begin(kind) {
    const taken = source[kind];
    let free = 1;
    while (`${ONE[kind]}-${free}` in taken) free++;
    draft = { kind, name: `${ONE[kind]}-${free}`, saved: null, adding: true, chosen: -1, autoInside: kind === "lines", shape: structuredClone(NEW[kind]) };
    showAll();
  }
  function choose(kind, shapeName, note) {
    const shape = pick(source[kind][shapeName], Object.keys(NEW[kind]));
    draft = { kind, name: shapeName, saved: JSON.stringify(shape), adding: false, chosen: -1, autoInside: false, locked: source[kind][shapeName].locked, shape };
    showAll(note);
  }
  function close() {
    draft = null;
    showAll();
  }
  function showAll(note) {
    showList();
    showForm(note);
    overlay.draw();
  }
  function editable() {
    return Boolean(draft) && !draft.locked && mayEdit();
  }
  function complete() {
    return draft.shape.points.length >= LEAST[draft.kind];
  }

  /** After each change of the draft. */
  function changed() {
    if (draft.autoInside && complete()) draft.shape.inside = beside(draft.shape.points);
    overlay.draw();
    form.update?.();
    tryOut();
  }
  function addPoint(point, place = draft.shape.points.length) {
    draft.shape.points.splice(place, 0, point);
    draft.chosen = place;
    changed();
    overlay.focus(place);
  }
  function movePoint(place, point) {
    if (place === "inside") draft.autoInside = false;
    if (place === "inside") draft.shape.inside = intoFrame(point);
    else draft.shape.points[place] = intoFrame(point);
    changed();
  }
  function removePoint(place) {
    if (place === "inside" || place < 0) return;
    draft.shape.points.splice(place, 1);
    draft.chosen = Math.min(place, draft.shape.points.length - 1);
    changed();
    overlay.focus(draft.chosen);
  }

  // The list and the form beside it

  function showList() {
    const entries = ["lines", "zones"].flatMap((kind) => Object.entries(source[kind]).map(([shapeName, shape]) => {
      const isMine = draft?.kind === kind && draft.name === shapeName && draft.saved !== null;
      return h("li", {}, h("button", { type: "button", "aria-pressed": String(isMine), onclick: () => (isMine ? close() : choose(kind, shapeName)) },
        h("span", { class: `swatch ${ONE[kind]}`, "aria-hidden": "true" }), h("span", {}, shapeName, h("small", {}, ONE[kind])),
        shape.locked ? h("small", { class: "lock" }, padlock(), "in the settings file") : null));
    }));
    const text = entries.map((entry) => entry.textContent + entry.firstChild.getAttribute("aria-pressed")).join();
    if (list.dataset.text === text) return;
    list.dataset.text = text;
    list.replaceChildren(...(entries.length ? entries : [h("li", { class: "hint" }, "No lines or zones yet.")]));
  }

  function showForm(note = "") {
    form.replaceChildren();
    delete form.update;
    setText(help, helpText());
    if (!draft) return;
    const { kind, shape } = draft;
    const one = ONE[kind];
    const error = h("p", { class: "error", role: "alert" });
    const tried = h("p", { class: "tried", role: "status" });
    const revision = h("p", { class: "hint", role: "status" });
    const nameInput = h("input", { id: "shape-name", value: draft.name, maxlength: 63, required: true, spellcheck: "false", disabled: draft.saved !== null, oninput: () => { draft.name = nameInput.value; changed(); } });
    const fields = kind === "lines"
      ? [selectField("anchor", "What crosses the line", ANCHORS), numberField("band", "Band, share of a person's height", 0, 1, 0.01),
        selectField("count", "What is counted", { crossings: "each crossing", persons: "each person once, when gone" })]
      : [selectField("anchor", "What must be inside", ANCHORS), numberField("enter_s", "Entered after, s", 0, 60, 0.1), numberField("leave_s", "Left after, s", 0, 60, 0.1)];
    const adding = h("input", { type: "checkbox", checked: draft.adding, onchange: () => (draft.adding = adding.checked) });
    const submit = h("button", { class: "primary" }, `Save ${one}`);
    form.append(h("h2", {}, draft.saved === null ? `New ${one}` : `${one[0].toUpperCase()}${one.slice(1)} ${draft.name}`));
    if (draft.locked) return form.append(h("p", { class: "hint" }, padlock(), `This ${one} is in the settings file, and can only be changed there.`), h("button", { type: "button", onclick: close }, "Close"));
    if (!mayEdit()) return form.append(h("button", { type: "button", onclick: close }, "Close"));
    form.append(
      h("label", { for: "shape-name" }, "Name"), nameInput,
      h("label", { class: "switch" }, adding, "A click on the picture adds a point"),
      h("div", { class: "row" },
        h("button", { type: "button", onclick: () => addPoint(nextPoint(shape.points)) }, "Add point"),
        h("button", { type: "button", onclick: () => removePoint(draft.chosen) }, "Remove point"),
        kind === "lines" && h("button", { type: "button", onclick: swap }, "Swap sides")),
      ...fields, tried, revision, error,
      h("div", { class: "row" }, submit, h("button", { type: "button", onclick: close }, draft.saved === null ? "Cancel" : "Close"),
        draft.saved !== null && askedButton("Delete…", `Delete ${draft.name}? What it counted is kept.`, removeShape, "Delete")));
    form.update = () => {
      const dirty = JSON.stringify(shape) !== draft.saved;
      submit.disabled = !dirty || !complete() || !NAME.test(draft.name);
      setText(revision, draft.saved !== null && dirty ? `Saving makes a new revision of this ${one}. What it has counted so far is kept.` : note);
      setText(error, draft.saved === null && !NAME.test(draft.name) ? "A name has letters, digits, - and _, at most 63." : "");
      if (!complete()) setText(tried, `Click ${LEAST[kind]} or more points into the picture.`);
    };
    form.showError = (text) => setText(error, text);
    form.showTried = (text) => setText(tried, text);
    form.update();
    if (complete()) tryOut();
  }

  function selectField(key, label, choices) {
    const select = h("select", { id: `shape-${key}`, onchange: () => { draft.shape[key] = select.value; changed(); } },
      Object.entries(choices).map(([value, text]) => h("option", { value, selected: draft.shape[key] === value }, text)));
    return h("div", { class: "field" }, h("label", { for: select.id }, label), select);
  }
  function numberField(key, label, min, max, step) {
    const input = h("input", { id: `shape-${key}`, type: "number", min, max, step, value: draft.shape[key], oninput: () => {
      if (Number.isNaN(input.valueAsNumber)) return;
      draft.shape[key] = input.valueAsNumber;
      changed();
    } });
    return h("div", { class: "field" }, h("label", { for: input.id }, label), input);
  }
  function helpText() {
    if (!mayEdit()) return "";
    if (!draft) return "Choose a line or zone to change it, or add one. A line should lie where people are seen whole and walk past.";
    if (draft.locked) return "";
    return "Drag the points, or reach them with Tab and move them with the arrow keys (Shift: ten times as far). A click on a segment inserts a point, Delete removes one."
      + (draft.kind === "lines" ? " A person counts as in after crossing the line along the arrow and leaving the shaded band." : "");
  }
  function swap() {
    if (!complete()) return;
    draft.shape.inside = otherSide(draft.shape.points, draft.shape.inside);
    draft.autoInside = false;
    changed();
  }

  // What the API is asked

  function tryOut() {
    clearTimeout(timer);
    const mine = ++tries;
    if (!complete() || !editable()) return;
    timer = setTimeout(async () => {
      try {
        const found = await post(at`sources/${name}/try`, { [ONE[draft.kind]]: draft.shape }, signal);
        if (mine === tries) form.showTried?.(triedText(found));
      } catch (error) {
        if (mine === tries && !signal.aborted) form.showTried?.(error.message);
      }
    }, TRY_MS);
  }

  async function save(event) {
    event.preventDefault();
    if (draft.saved === null && draft.name in source[draft.kind]) return form.showError(`There is a ${ONE[draft.kind]} ${draft.name} already: choose another name.`);
    await change(async () => {
      await put(at`sources/${name}/${draft.kind}/${draft.name}`, draft.shape);
      source[draft.kind][draft.name] = { ...source[draft.kind][draft.name], ...structuredClone(draft.shape), locked: false };
      choose(draft.kind, draft.name, "Saved.");
    });
  }
  async function removeShape() {
    await change(async () => {
      await remove(at`sources/${name}/${draft.kind}/${draft.name}`);
      delete source[draft.kind][draft.name];
      close();
    });
  }
  async function change(work) {
    try {
      await work();
    } catch (error) {
      form.showError(error.message);
    }
  }
}

const padlock = () => svg("svg", { class: "padlock", viewBox: "0 0 12 14", role: "img", "aria-label": "Locked:" },
  svg("path", { d: "M1 6h10v7H1zM3.2 6V4a2.8 2.8 0 0 1 5.6 0v2" }));

const pick = (object, keys) => structuredClone(Object.fromEntries(keys.map((key) => [key, object[key]])));

function triedText(found) {
  if (found.seconds < 1) return "Nobody was seen yet: what it would have counted is not known.";
  const when = `In the last ${duration(found.seconds)} it would have counted`;
  if ("in" in found) return `${when} ${number(found.in)} in, ${number(found.out)} out.`;
  return `${when} ${plural(found.entered, "visit", "visits")}, with ${plural(found.people_max, "person", "people")} at most at once.`;
}
