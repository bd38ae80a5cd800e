// What was counted, by interval, and where people stood.
import { at, get, session } from "./api.js";
import { h, setAttribute, setText } from "./dom.js";
import { aspectOf, heatPicture, paintHeat } from "./draw.js";
import { localMinute } from "./format.js";
import { makeLegend } from "./camera.js";
import { chartOf, prepared } from "./plot.js";

const DAY_MS = 86_400_000;
const RANGES = {
  today: { text: "Today", by: "15m", dates: () => ["today", "now"] },
  yesterday: { text: "Yesterday", by: "15m", dates: () => ["yesterday", "today"] },
  week: { text: "7 days", by: "hour", dates: () => [dateBefore(6), "now"] },
  month: { text: "30 days", by: "day", dates: () => [dateBefore(29), "now"] },
  own: { text: "From … to", by: "hour" },
};
const INTERVALS = { "1m": "1 minute", "5m": "5 minutes", "15m": "15 minutes", "30m": "30 minutes", hour: "1 hour", day: "1 day", week: "1 week", month: "1 month", year: "1 year", total: "Total" };
const KINDS = { area: "Areas", line: "Lines", zone: "Zones", source: "Sources" };

const dateBefore = (days) => localMinute(new Date(Date.now() - days * DAY_MS)).slice(0, 10);

export async function show(main, signal, name, query) {
  document.title = "Charts – peoplecounter";
  const chosen = {
    range: query.get("range") in RANGES ? query.get("range") : "today", by: query.get("by") in INTERVALS ? query.get("by") : "",
    from: query.get("from") ?? dateBefore(6), to: query.get("to") ?? localMinute(new Date()).slice(0, 16),
    names: new Set(query.getAll("name")), // "line door.entrance"; none: all
  };
  if (chosen.from.length === 10) chosen.from += "T00:00";
  const ranges = h("div", { class: "segmented", role: "group", "aria-label": "Time" }, Object.entries(RANGES).map(([key, { text }]) =>
    h("button", { type: "button", "data-range": key, onclick: () => change({ range: key, by: "" }) }, text)));
  const from = h("input", { type: "datetime-local", value: chosen.from, "aria-label": "From", onchange: () => from.value && change({ from: from.value }) });
  const to = h("input", { type: "datetime-local", value: chosen.to, "aria-label": "To", onchange: () => to.value && change({ to: to.value }) });
  const own = h("span", { class: "row" }, from, "to", to);
  const by = h("select", { "aria-label": "Interval", onchange: () => change({ by: by.value }) },
    Object.entries(INTERVALS).map(([value, text]) => h("option", { value }, text)));
  const csv = h("a", { class: "button", download: "" }, "Download CSV");
  const names = h("div", { class: "names" });
  const choice = h("details", { class: "choice", open: innerWidth > 700 }, h("summary", {}, "Choose areas, lines, zones, sources"), names);
  const message = h("p", { class: "notice", role: "status", hidden: true });
  const charts = h("div", { class: "charts" });
  const heats = h("div", { class: "charts heats" });
  let asking = 0;
  const note = h("p", { class: "hint" }, "The hatched share of an interval was not observed. A gap in a line means that nothing is known, which is not 0.");
  main.append(
    h("div", { class: "page-head" }, h("h1", {}, "Charts"), h("span", { class: "hint" }, `Times in ${session.timezone}`)),
    h("div", { class: "controls" }, ranges, own, h("label", { class: "row" }, "Interval", by), csv), choice, message, note, charts,
    h("h2", { class: "section" }, "Where people stood, last hour"), heats);

  const [sources, areas] = await Promise.all([get("sources", signal), get("areas", signal).catch(() => [])]);
  const known = new Set([
    ...areas.map((area) => `area ${area.name}`),
    ...["line", "zone"].flatMap((kind) => sources.flatMap((source) => Object.keys(source[`${kind}s`]).map((shape) => `${kind} ${source.name}.${shape}`))),
    ...sources.map((source) => `source ${source.name}`),
  ]);
  load();
  showHeats(heats, sources, signal);

  function change(what) {
    Object.assign(chosen, what);
    load();
  }
  function parameters() {
    const [begin, end] = RANGES[chosen.range].dates?.() ?? [chosen.from, chosen.to];
    const asked = new URLSearchParams({ by: chosen.by || RANGES[chosen.range].by, from: begin, to: end, tz: session.timezone });
    for (const one of chosen.names) asked.append(...one.split(" "));
    return asked;
  }
  function showControls(asked) {
    for (const button of ranges.children) button.setAttribute("aria-pressed", String(button.dataset.range === chosen.range));
    own.hidden = chosen.range !== "own";
    by.value = asked.get("by");
    csv.hidden = false;
    csv.href = `/api/v1/intervals?${asked}&format=csv`;
    names.replaceChildren(...Object.entries(KINDS).map(([kind, text]) => {
      const mine = [...known].filter((one) => one.startsWith(`${kind} `));
      return mine.length ? h("div", { role: "group", "aria-label": text }, h("span", { class: "hint" }, text), mine.map(nameChip)) : null;
    }).filter(Boolean), h("button", { type: "button", class: "quiet", onclick: () => change({ names: new Set() }), hidden: !chosen.names.size }, "Show all"));
    const kept = new URLSearchParams({ range: chosen.range });
    if (chosen.by) kept.set("by", chosen.by);
    if (chosen.range === "own") [["from", chosen.from], ["to", chosen.to]].forEach(([key, value]) => kept.set(key, value));
    for (const one of chosen.names) kept.append("name", one);
    history.replaceState(null, "", `#/charts?${kept}`);
  }
  function nameChip(one) {
    const box = h("input", { type: "checkbox", checked: chosen.names.has(one), onchange: () => {
      if (box.checked) chosen.names.add(one);
      else chosen.names.delete(one);
      load(one);
    } });
    return h("label", { class: "switch", "data-name": one }, box, one.slice(one.indexOf(" ") + 1));
  }

  async function load(focus) {
    const mine = ++asking;
    const asked = parameters();
    showControls(asked);
    if (focus) names.querySelector(`[data-name="${CSS.escape(focus)}"] input`)?.focus();
    charts.setAttribute("aria-busy", "true");
    try {
      const { rows } = await get(`intervals?${asked}`, signal);
      if (mine !== asking) return;
      message.hidden = Boolean(rows.length);
      setText(message, "Nothing was recorded in this time.");
      showCharts(rows.map(prepared), asked.get("by"));
    } catch (error) {
      if (mine !== asking || signal.aborted) return;
      charts.replaceChildren();
      csv.hidden = true;
      choice.hidden = !session.history;
      message.hidden = false;
      setText(message, error.message);
    } finally {
      charts.removeAttribute("aria-busy");
    }
    note.hidden = !charts.children.length;
  }
  function showCharts(rows, interval) {
    const groups = Map.groupBy(rows, (row) => `${row.kind} ${row.name}`);
    const order = Object.keys(KINDS);
    const sorted = [...groups].sort(([, [a]], [, [b]]) => order.indexOf(a.kind) - order.indexOf(b.kind) || a.name.localeCompare(b.name));
    charts.replaceChildren(...sorted.filter(([, [first]]) => first.kind in KINDS).map(([, mine]) => chartOf(mine[0].kind, mine[0].name, mine, interval)));
  }
}

/** A heat map of feet for each source, over its picture where pictures may be shown. */
async function showHeats(place, sources, signal) {
  for (const source of sources) {
    const canvas = h("canvas", { role: "img", "aria-label": `Where people stood in ${source.name}` });
    const legend = makeLegend();
    canvas.style.aspectRatio = aspectOf(source);
    place.append(h("figure", { class: "chart" }, h("figcaption", {}, h("strong", {}, source.name)), h("div", { class: "picture" }, canvas), legend.element));
    legend.element.hidden = false;
    const seen = new IntersectionObserver(async ([{ isIntersecting }]) => {
      if (!isIntersecting) return;
      seen.disconnect();
      try {
        const heat = await get(at`sources/${source.name}/heat`, signal);
        const picture = session.video === "off" ? null : await pictureOf(source.name, signal);
        paintHeat(canvas, heatPicture(heat), picture);
        picture?.close();
        legend.update(heat);
      } catch (error) {
        if (!signal.aborted) legend.element.replaceChildren(error.message);
      }
    });
    seen.observe(canvas);
    signal.addEventListener("abort", () => seen.disconnect());
  }
}

async function pictureOf(name, signal) {
  const response = await fetch(`/api/v1/${at`sources/${name}/picture`}?width=640`, { signal });
  return response.ok ? createImageBitmap(await response.blob()) : null;
}
