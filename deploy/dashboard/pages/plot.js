// One chart of intervals as SVG: lines, bars in both directions, gaps, hatching for what was not observed, a tooltip.
import { h, setText, svg } from "./dom.js";
import { number, percent, time } from "./format.js";

const HEIGHT = 12.6; // in rem, as the margins
const MARGIN = { left: 3.1, right: 0.7, top: 0.7, bottom: 1.8 };
const OBSERVED = 0.98; // a share below this is hatched
const TICKS_MIN = [1, 5, 15, 30, 60, 120, 180, 360, 720, 1440];

/** What is drawn of each kind of row: columns with their labels; `up` and `down` are bars. */
const DRAWN = {
  source: [{ key: "people_max", label: "Peak", as: "line", tone: "faint" }, { key: "people_mean", label: "Average people", as: "line", tone: "main", digits: 1 }],
  zone: [{ key: "people_max", label: "Peak", as: "line", tone: "faint" }, { key: "people_mean", label: "Average people", as: "line", tone: "main", digits: 1 },
    { key: "visits", label: "Visits" }, { key: "dwell_mean_s", label: "Average stay, s", digits: 1 }],
  line: [{ key: "in", label: "In", as: "up", tone: "in" }, { key: "out", label: "Out", as: "down", tone: "out" }],
  area: [{ key: "occupancy", label: "People inside", as: "steps", tone: "main" }, { key: "in", label: "In" }, { key: "out", label: "Out" }, { key: "corrected", label: "Corrected by" }],
};

/** A figure with a chart of the rows of one source, line, zone or area. */
export function chartOf(kind, name, rows, by) {
  const columns = DRAWN[kind];
  const plot = h("div", { class: "plot", tabindex: 0, role: "img", "aria-label": `Chart of the ${kind} ${name}, ${rows.length} intervals. Arrow keys go through them.` });
  const tip = h("div", { class: "tip", hidden: true });
  const spoken = h("span", { class: "unseen", role: "status" });
  const figure = h("figure", { class: "chart" },
    h("figcaption", {}, h("strong", {}, name), h("span", { class: "hint" }, ` ${kind}`), keyOf(columns, rows)), plot, spoken, tableOf(columns, rows, by));
  let chosen = -1;
  let geometry = null;

  function draw() {
    geometry = geometryOf(rows, columns, plot.clientWidth || 600);
    plot.replaceChildren(pictureOf(rows, columns, geometry, by), tip);
  }
  function point(i, speak) {
    chosen = Math.max(0, Math.min(rows.length - 1, i));
    const texts = textsOf(columns, rows[chosen], by);
    tip.replaceChildren(...texts.map((text, k) => h(k ? "div" : "strong", {}, text)));
    tip.hidden = false;
    const x = (geometry.x(rows[chosen].begin) + geometry.x(rows[chosen].until)) / 2;
    const isRight = x > geometry.width / 2; // the tooltip is beside the cursor, where there is space
    tip.style.left = isRight ? "auto" : `${x}px`;
    tip.style.right = isRight ? `${geometry.width - x}px` : "auto";
    const cursor = plot.querySelector(".cursor");
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.removeAttribute("visibility");
    if (speak) setText(spoken, texts.join(", "));
  }
  function leave() {
    tip.hidden = true;
    plot.querySelector(".cursor")?.setAttribute("visibility", "hidden");
  }
  plot.addEventListener("pointermove", (event) => {
    const at = geometry.timeAt(event.clientX - plot.getBoundingClientRect().left);
    const i = rows.findIndex((row) => at < row.until);
    point(i < 0 ? rows.length - 1 : i, false);
  });
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("focus", () => plot.matches(":focus-visible") && point(chosen < 0 ? rows.length - 1 : chosen, true));
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    point(to, true);
  });
  const resized = new ResizeObserver(() => {
    if (!figure.isConnected) return resized.disconnect();
    if (plot.clientWidth && plot.clientWidth !== geometry?.width) draw();
  });
  resized.observe(plot);
  return figure;
}

const WRITTEN_MS = 90_000; // a minute is in the history when it is over

/** Rows with their begin and end as numbers and the share that was observed, of the current interval up to now. */
export function prepared(row) {
  const [begin, until] = [Date.parse(row.start), Date.parse(row.end)];
  const over_s = (Math.min(until, Date.now() - WRITTEN_MS) - begin) / 1000;
  const observed = over_s <= 0 ? 1 : Math.min(1, row.observed_s / (Date.now() - WRITTEN_MS < until ? over_s : row.seconds));
  return { ...row, begin, until, observed };
}

function geometryOf(rows, columns, width) {
  const begin = rows[0].begin;
  const end = rows.at(-1).until;
  const value = (row, column) => (column.as === "down" ? -1 : 1) * (row[column.key] ?? 0);
  const values = rows.flatMap((row) => columns.filter(({ as }) => as).map((column) => value(row, column)));
  const step = niceStep(Math.max(...values, 1) - Math.min(...values, 0));
  const high = (Math.floor(Math.max(...values, 1) / step) + 1) * step;
  const least = Math.min(...values, 0);
  const low = least < 0 ? (Math.ceil(least / step) - 1) * step : 0;
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const [left, right, top, bottom] = [MARGIN.left * rem, width - MARGIN.right * rem, MARGIN.top * rem, (HEIGHT - MARGIN.bottom) * rem];
  return {
    rem, width, height: HEIGHT * rem, left, right, top, bottom, low, high, step,
    x: (at) => left + ((at - begin) / (end - begin)) * (right - left),
    y: (v) => top + ((high - v) / (high - low)) * (bottom - top),
    timeAt: (x) => begin + ((x - left) / (right - left)) * (end - begin),
  };
}

/** 1, 2 or 5 times a power of ten: about six steps in a range of whole numbers. */
function niceStep(range) {
  const rough = range / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  return Math.max(1, power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10));
}

let patterns = 0;

function pictureOf(rows, columns, geometry, by) {
  const { rem, width, height, left, right, top, bottom, x, y, low, high, step } = geometry;
  const hatch = `hatch-${++patterns}`;
  const picture = svg("svg", { width, height, "aria-hidden": "true" },
    svg("defs", {}, svg("pattern", { id: hatch, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      svg("line", { class: "hatch", x1: 0, y1: 0, x2: 0, y2: 6 }))));
  for (let v = low; v <= high + step / 2; v += step) {
    picture.append(svg("line", { class: v === 0 ? "axis" : "rule", x1: left, x2: right, y1: y(v), y2: y(v) }),
      svg("text", { x: left - rem / 2, y: y(v) + rem / 4, "text-anchor": "end" }, number(columns[0].as === "up" ? Math.abs(v) : v)));
  }
  for (const row of ticksOf(rows, (right - left) / rem)) {
    const at = by === "day" || by === "month" || by === "year" ? (x(row.begin) + x(row.until)) / 2 : x(row.begin);
    picture.append(svg("line", { class: "rule", x1: x(row.begin), x2: x(row.begin), y1: bottom, y2: bottom + rem / 4 }),
      svg("text", { x: Math.min(at, width - 2.5 * rem), y: height - rem / 2, "text-anchor": "middle" }, labelOf(row, by)));
  }
  for (const row of rows) {
    if (row.observed >= OBSERVED) continue;
    const missed = (1 - row.observed) * (bottom - top);
    picture.append(svg("rect", { x: x(row.begin), width: x(row.until) - x(row.begin), y: top, height: missed, fill: `url(#${hatch})` }));
  }
  for (const column of columns) {
    if (column.as === "up" || column.as === "down") picture.append(...barsOf(rows, column, geometry));
    else if (column.as) picture.append(svg("path", { class: `curve ${column.tone}`, d: curveOf(rows, column, geometry) }));
  }
  picture.append(svg("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" }));
  return picture;
}

function barsOf(rows, { key, as, tone }, { x, y }) {
  return rows.filter((row) => row[key]).map((row) => {
    const gap = Math.min(3, (x(row.until) - x(row.begin)) * 0.2);
    const [top, bottom] = as === "up" ? [y(row[key]), y(0)] : [y(0), y(-row[key])];
    return svg("rect", { class: `bar ${tone}`, x: x(row.begin) + gap / 2, width: x(row.until) - x(row.begin) - gap, y: top, height: bottom - top });
  });
}

/** A path that is broken where a value is not known. A lone value is a short dash. */
function curveOf(rows, { key, as }, { x, y }) {
  let path = "";
  let open = false;
  rows.forEach((row, i) => {
    const value = row[key];
    if (value === null || value === undefined) return (open = false);
    const alone = !open && (rows[i + 1]?.[key] ?? null) === null;
    if (as === "steps" || alone) path += `${open ? "L" : "M"}${x(row.begin)},${y(value)}L${x(row.until)},${y(value)}`;
    else path += `${open ? "L" : "M"}${(x(row.begin) + x(row.until)) / 2},${y(value)}`;
    open = true;
  });
  return path;
}

/** The rows that get a label: at round local times, as many as there is space for in `rems`. */
function ticksOf(rows, rems) {
  const most = Math.max(2, Math.floor(rems / 4));
  const days = Math.max(2, Math.floor(rems / 6.5));
  const minutes = ({ start }) => Number(start.slice(11, 13)) * 60 + Number(start.slice(14, 16)) || 0;
  if (rows.some(minutes)) {
    for (const step of TICKS_MIN) {
      const ticks = rows.filter((row) => minutes(row) % step === 0);
      if (ticks.length && ticks.length <= (step < 1440 ? most : days)) return ticks;
    }
  }
  const midnights = rows.filter((row) => minutes(row) === 0);
  const every = Math.ceil(midnights.length / days);
  return midnights.filter((_, i) => i % every === 0);
}

function labelOf(row, by) {
  if (by === "month" || by === "year") return time(row.begin, "month");
  const midnight = row.start.slice(11, 16) === "00:00" || by === "day" || by === "week";
  return time(row.begin, midnight ? "day" : "minute");
}

/** "Thu 26 Nov 08:15 – 08:30", or only the day. */
function spanOf(row, by) {
  if (by === "day") return time(row.begin, "day");
  if (by === "month" || by === "year") return time(row.begin, "month");
  if (by === "week" || by === "total") return `${time(row.begin, "moment")} – ${time(row.until, "moment")}`;
  return `${time(row.begin, "moment")} – ${time(row.until, "minute")}`;
}

const valueOf = (row, { key, digits }) => (row[key] === null || row[key] === undefined ? "not known" : number(row[key], digits));

const textsOf = (columns, row, by) => [
  spanOf(row, by),
  ...columns.filter(({ key, as }) => as || row[key] !== null).map((column) => `${column.label}: ${valueOf(row, column)}`),
  `observed ${percent(row.observed)}`,
];

/** The colours, with the sum of what is drawn as bars. */
const keyOf = (columns, rows) => h("span", { class: "key" }, columns.filter(({ as }) => as).map(({ key, label, tone, as }) =>
  h("span", {}, h("i", { class: tone, "aria-hidden": "true" }), label, as === "up" || as === "down" ? ` ${number(rows.reduce((sum, row) => sum + (row[key] ?? 0), 0))}` : "")));

/** The same as a table, which is built when it is opened. */
function tableOf(columns, rows, by) {
  const details = h("details", { ontoggle: () => {
    if (!details.open || details.children.length > 1) return;
    const head = h("tr", {}, ["Interval", ...columns.map(({ label }) => label), "Observed"].map((text) => h("th", { scope: "col" }, text)));
    const body = rows.map((row) => h("tr", {}, h("th", { scope: "row" }, spanOf(row, by)),
      columns.map((column) => h("td", {}, valueOf(row, column))), h("td", {}, percent(row.observed))));
    details.append(h("div", { class: "scroll", tabindex: 0 }, h("table", {}, h("thead", {}, head), h("tbody", {}, body))));
  } }, h("summary", {}, "As a table"));
  return details;
}
