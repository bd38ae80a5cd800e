// Lines and zones over a picture as SVG. The points of the draft are elements: reached with Tab, dragged, moved by arrow keys.
import { svg } from "./dom.js";
import { percent } from "./format.js";
import { arrowOf, intoFrame } from "./geometry.js";

export const ONE = { lines: "line", zones: "zone" };
const STEP = 0.002; // of the picture's width, an arrow key; Shift: ten times
const TOUCH_PX = 20;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The overlay of an editor, which gives: shapes(), draft(), personHeight(), aspect(), editable(); and is told:
    choose(kind, name), addPoint(point, place), movePoint(place, point), removePoint(place). */
export function makeOverlay(editor) {
  const element = svg("svg", { class: "overlay", role: "group", "aria-label": "Lines and zones" });
  let dragged = null; // the place of a point, or "inside"

  function draw() {
    const [width, height] = [element.clientWidth, element.clientHeight];
    const draft = editor.draft();
    const shapes = editor.shapes();
    const focused = element.contains(document.activeElement) ? document.activeElement.dataset.point : undefined;
    element.setAttribute("viewBox", `0 0 ${width} ${height}`);
    element.classList.toggle("active", editor.editable());
    element.replaceChildren();
    for (const kind of ["zones", "lines"]) {
      for (const [name, shape] of Object.entries(shapes[kind])) {
        if (draft?.kind === kind && draft.name === name) continue;
        const click = draft ? null : () => editor.choose(kind, name);
        element.append(svg("g", { onclick: click }, shapeElements(kind, name, shape, width, height)));
      }
    }
    if (draft) {
      const { kind, name, shape } = draft;
      const band = kind === "lines" && svg("polyline", { class: "band", points: textOf(shape.points, width, height), "stroke-width": 2 * shape.band * editor.personHeight() * height });
      element.append(svg("g", { class: "draft" }, band, shapeElements(kind, name, shape, width, height)));
      if (editor.editable()) element.append(...handles(draft, width, height));
    }
    if (focused !== undefined) focus(focused);
  }
  function focus(place) {
    element.querySelector(`[data-point="${place}"]`)?.focus();
  }

  element.addEventListener("pointerdown", (event) => {
    if (!editor.editable() || event.button) return;
    const { point, segment } = event.target.closest("[data-point], [data-segment]")?.dataset ?? {};
    const draft = editor.draft();
    event.preventDefault();
    if (point) draft.chosen = placeOf(point);
    else if (segment) editor.addPoint(at(event), Number(segment));
    else if (draft.adding) editor.addPoint(at(event));
    else return;
    dragged = draft.chosen;
    element.setPointerCapture(event.pointerId);
    focus(dragged);
  });
  element.addEventListener("pointermove", (event) => dragged !== null && editor.movePoint(dragged, at(event)));
  for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, () => (dragged = null));
  element.addEventListener("focusin", ({ target }) => {
    editor.draft().chosen = placeOf(target.dataset.point);
    for (const knob of element.querySelectorAll(".knob")) knob.classList.toggle("chosen", knob.parentNode === target);
  });
  element.addEventListener("keydown", (event) => {
    const place = placeOf(event.target.dataset.point);
    if (event.key in ARROWS) {
      const { points, inside } = editor.draft().shape;
      const [x, y] = place === "inside" ? inside : points[place];
      const step = event.shiftKey ? 10 * STEP : STEP;
      const [right, down] = ARROWS[event.key];
      editor.movePoint(place, [x + right * step, y + down * step * editor.aspect()]);
    } else if (event.key === "Delete" || event.key === "Backspace") editor.removePoint(place);
    else return;
    event.preventDefault();
  });
  function at(event) {
    const { left, top, width, height } = element.getBoundingClientRect();
    return intoFrame([(event.clientX - left) / width, (event.clientY - top) / height]);
  }
  return { element, draw, focus };
}

const placeOf = (text) => (text === "inside" ? text : Number(text));
const textOf = (points, width, height) => points.map(([x, y]) => `${x * width},${y * height}`).join(" ");

/** A line or zone, with its name, and the arrow to a line's inside. Each is drawn on a dark shade. */
function shapeElements(kind, name, shape, width, height) {
  const points = textOf(shape.points, width, height);
  const tag = kind === "zones" && shape.points.length > 2 ? "polygon" : "polyline";
  const elements = [svg(tag, { class: "shade", points }), svg(tag, { class: ONE[kind], points })];
  if (shape.inside && shape.points.length > 1) {
    const { middle, tip, wings } = arrowOf(shape, width, height, 34);
    const d = `M${middle}L${tip}M${wings[0]}L${tip}L${wings[1]}`;
    elements.push(svg("path", { class: "shade", d }), svg("path", { class: "line", d }));
  }
  if (!shape.points.length) return [];
  const [x, y] = [shape.points[0][0] * width, shape.points[0][1] * height];
  return [...elements, svg("text", { x: Math.max(4, Math.min(x + 10, width - 9 * name.length)), y: Math.max(16, y - 12) }, name)];
}

/** What can be grabbed: segments, to insert a point; the points; the point on the inner side. */
function handles({ kind, shape, chosen }, width, height) {
  const px = shape.points.map(([x, y]) => [x * width, y * height]);
  const closed = kind === "zones" && px.length > 2;
  const segments = px.map((begin, i) => [begin, px[i + 1] ?? px[0], i + 1]).slice(0, closed ? px.length : -1)
    .map(([[x1, y1], [x2, y2], place]) => svg("line", { class: "segment", x1, y1, x2, y2, "data-segment": place }));
  const handle = (place, [x, y], label, knob) => svg("g", {
    class: "handle", tabindex: 0, role: "button", "data-point": place, "aria-label": `${label}: ${percent(x)} from the left, ${percent(y)} from the top`,
  }, svg("circle", { class: "touch", cx: x * width, cy: y * height, r: TOUCH_PX }), knob);
  const knobClass = (place) => `knob ${chosen === place ? "chosen" : ""}`;
  const points = px.map(([cx, cy], i) => handle(i, shape.points[i], `Point ${i + 1} of ${px.length}`, svg("circle", { class: knobClass(i), cx, cy, r: 7 })));
  if (!shape.inside) return [...segments, ...points];
  const [x, y] = [shape.inside[0] * width, shape.inside[1] * height];
  const inside = handle("inside", shape.inside, "A point on the inner side", svg("rect", { class: knobClass("inside"), x: x - 6, y: y - 6, width: 12, height: 12 }));
  return [...segments, inside, svg("text", { x: x + 13, y: y + 5 }, "inside"), ...points];
}
