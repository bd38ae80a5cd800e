// One source, large, with everything that is known about it.
import { at, get, listen, mayEdit, session } from "./api.js";
import { h, remember, remembered, repeat, setAttribute, setText } from "./dom.js";
import { aspectOf, heatPicture, paint, paintLegend, Tails, widthFor } from "./draw.js";
import { NONE, localMinute, number, plural, reasons, sentence, shortId, stateOf, sum, time } from "./format.js";
import { watch } from "./live.js";

const FPS = 15;
const SWITCHES = { boxes: "Boxes", ids: "Ids", tails: "Tails", shapes: "Lines and zones", views: "Views", heat: "Heat map" };
const USUAL = { boxes: true, ids: false, tails: true, shapes: true, views: false, heat: false };
const LATEST = 12; // crossings that are listed

export async function show(main, signal, name) {
  document.title = `${name} – peoplecounter`;
  let source = await get(at`sources/${name}`, signal); // an unknown one is told by the frame around all pages
  const on = { ...USUAL, ...remembered("switches", {}) };
  const canvas = h("canvas", { role: "img", "aria-label": name });
  const veil = h("span", { class: "veil" });
  const count = h("span", { class: "count" }, NONE);
  const mark = h("span", { class: "mark", hidden: true }, "incomplete");
  const state = h("p", { class: "state" });
  const facts = h("dl", { class: "facts column" });
  const lines = h("tbody");
  const zones = h("tbody");
  const crossings = h("ol", { class: "crossings" });
  const note = h("p", { class: "hint", role: "status" });
  const legend = makeLegend();
  const stage = h("div", { class: "picture stage" }, canvas, veil);
  const lineTable = h("table", { class: "shapes" }, h("caption", {}, "Lines"),
    h("thead", {}, h("tr", {}, h("td"), ["Today", "Ever"].map((text) => h("th", { colspan: 2, scope: "colgroup" }, text))), row("th", ["Line", "In", "Out", "In", "Out"])), lines);
  const zoneTable = h("table", { class: "shapes" }, h("caption", {}, "Zones"), h("thead", {}, row("th", ["Zone", "People", "Entered", "Left"])), zones);
  main.append(
    h("div", { class: "page-head" }, h("h1", {}, name), state,
      h("a", { class: "button", href: `#/edit/${encodeURIComponent(name)}` }, mayEdit() ? "Edit lines and zones" : "Lines and zones")),
    h("div", { class: "split" },
      h("div", {}, stage, h("div", { class: "switches", role: "group", "aria-label": "Show in the picture" }, Object.keys(SWITCHES).map(makeSwitch)), note, legend.element),
      h("aside", { class: "side" },
        h("div", { class: "tally big" }, count, h("span", { class: "unit" }, "people"), mark), facts, lineTable, zoneTable,
        h("section", { "aria-label": "Latest crossings" }, h("h2", {}, "Latest crossings"), crossings))));

  const tails = new Tails();
  const extra = { views: null, heat: null };
  let unwatch = null;
  let last = null; // the last message, without its picture

  function showMessage(head, picture) {
    last = head;
    canvas.style.aspectRatio = aspectOf(head);
    tails.add(head);
    paint(canvas, head, picture, { boxes: on.boxes, ids: on.ids, tails: on.tails && tails, shapes: on.shapes, labels: true, views: on.views && extra.views, heat: on.heat && extra.heat });
    if (stateOf(source).old) return;
    setText(count, number(head.count));
    mark.hidden = head.complete !== false;
    showShapes(head.lines, head.zones);
  }
  function showShapes(ofLines, ofZones) {
    lineTable.hidden = !Object.keys(ofLines).length;
    zoneTable.hidden = !Object.keys(ofZones).length;
    fillRows(lines, Object.entries(ofLines).map(([line, l]) => [line, number(l.in_today), number(l.out_today), number(l.in), number(l.out)]));
    fillRows(zones, Object.entries(ofZones).map(([zone, z]) => [zone, number(z.people), number(z.entered), number(z.left)]));
  }
  function showSource(now) {
    source = now;
    const { tone, text, old } = stateOf(now);
    main.dataset.tone = tone;
    setAttribute(stage, "data-old", old || null);
    setText(veil, old ? text : "");
    setText(state, now.detail ? `${text}: ${now.detail}` : text);
    canvas.style.aspectRatio = aspectOf(now);
    stage.style.setProperty("--aspect", aspectOf(now));
    setAttribute(canvas, "aria-label", `${name}: ${now.count === null ? "not counted yet" : plural(now.count, "person", "people")}`);
    if (old || !last) {
      setText(count, number(now.count));
      showShapes(now.lines, now.zones);
    }
    const { frames, dropped, incomplete } = now.totals ?? {};
    fillFacts(facts, {
      "Frames/s": number(now.fps, 1), Behind: now.end_to_end_ms === null ? NONE : `${number(now.end_to_end_ms, 1)} ms`,
      Picture: now.width ? `${now.width} × ${now.height}` : NONE, Frames: number(frames),
      Dropped: sum(dropped) ? reasons(dropped) : "none", Incomplete: number(incomplete), ...(now.url ? { Address: now.url } : {}),
    });
    setText(note, sentence(now.warning));
    unwatch ??= watchAtWidth();
  }
  let width = 0;
  function watchAtWidth() {
    width = widthFor(canvas);
    return watch(name, width, FPS, showMessage);
  }
  const resized = new ResizeObserver(() => {
    if (!unwatch || widthFor(canvas) === width) return;
    unwatch();
    unwatch = watchAtWidth();
  });
  resized.observe(canvas);
  signal.addEventListener("abort", () => {
    resized.disconnect();
    unwatch?.();
    delete main.dataset.tone;
  });

  function makeSwitch(key) {
    const box = h("input", { type: "checkbox", checked: on[key], onchange: () => {
      on[key] = box.checked;
      remember("switches", on);
      loadExtra().catch(() => {});
    } });
    return h("label", { class: "switch" }, box, SWITCHES[key]);
  }
  async function loadExtra() {
    try {
      if (on.views && !extra.views) extra.views = (await get(at`sources/${name}/views`, signal)).views;
      if (on.heat) {
        const heat = await get(at`sources/${name}/heat`, signal);
        extra.heat = heatPicture(heat);
        legend.update(heat);
      }
    } catch (error) {
      if (!signal.aborted) setText(note, error.message);
    }
    legend.element.hidden = !(on.heat && extra.heat);
  }
  repeat(loadExtra, 30_000, signal);
  await repeat(() => get(at`sources/${name}`, signal).then(showSource).catch((error) => {
    if (signal.aborted) return;
    main.dataset.tone = "bad";
    setText(state, error.message);
  }), 2000, signal);
  listCrossings(crossings, name, signal);
}

/** The last hour's crossings from the history, then each new one as it happens. */
async function listCrossings(list, name, signal) {
  const line = (crossing) => h("li", { class: crossing.direction },
    h("time", { datetime: crossing.time }, time(crossing.time)),
    h("span", { class: "direction" }, crossing.direction === "in" ? "→ in" : "← out"),
    h("span", {}, crossing.line), h("span", { class: "hint", title: "The number of the person's track" }, crossing.track ? `track ${shortId(crossing.track)}` : ""));
  const none = h("li", { class: "hint none" }, "None since this page was opened.");
  list.append(none);
  listen("crossing", (crossing) => {
    if (crossing.source !== name) return;
    none.remove();
    list.prepend(line(crossing));
    while (list.children.length > LATEST) list.lastElementChild.remove();
  }, signal);
  if (!session.history) return;
  const from = localMinute(new Date(Date.now() - 3_600_000));
  const query = new URLSearchParams({ source: name, from, to: "now", limit: 1000 });
  const { rows } = await get(`crossings?${query}`, signal).catch(() => ({ rows: [] }));
  if (!rows.length || list.children.length > 1) return;
  none.remove();
  rows.sort((a, b) => new Date(b.time) - new Date(a.time));
  list.append(...rows.slice(0, LATEST).map(line));
}

/** A legend of the heat map. */
export function makeLegend() {
  const colours = h("canvas", { width: 160, height: 10, "aria-hidden": "true" });
  const most = h("span");
  const element = h("p", { class: "legend hint", hidden: true }, "0", colours, most);
  paintLegend(colours);
  return {
    element,
    update({ cells, since }) {
      const highest = Math.max(0, ...cells);
      setText(most, highest > 0 ? `${number(highest)} person-seconds at the most crowded place, since ${time(since, "minute")}` : `nobody was seen since ${time(since, "minute")}`);
    },
  };
}

const row = (tag, texts) => h("tr", {}, texts.map((text, i) => h(i ? tag : "th", { scope: tag === "th" ? "col" : i ? null : "row" }, text)));

/** Changes only the cells that differ. */
function fillRows(body, rows) {
  while (body.children.length > rows.length) body.lastElementChild.remove();
  rows.forEach((texts, i) => {
    if (!body.children[i]) body.append(row("td", texts));
    else texts.forEach((text, k) => setText(body.children[i].children[k], text));
  });
}

function fillFacts(list, facts) {
  list.replaceChildren(...Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
