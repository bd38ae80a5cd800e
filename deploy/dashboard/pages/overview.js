// All sources at a glance, areas, and what is wrong.
import { at, get, mayEdit, post } from "./api.js";
import { h, repeat, setAttribute, setText } from "./dom.js";
import { aspectOf, paint, widthFor } from "./draw.js";
import { NONE, number, plural, reasons, sentence, stateOf, sum } from "./format.js";
import { watch } from "./live.js";

const FPS = 5;

export async function show(main, signal) {
  const summary = h("p", { class: "summary" });
  const troubles = h("ul", { class: "troubles", "aria-label": "What needs attention" });
  const areas = h("section", { class: "areas", "aria-label": "Areas", hidden: true });
  const grid = h("div", { class: "tiles" });
  main.append(h("h1", { class: "unseen" }, "Overview"), summary, troubles, areas, grid);
  const tiles = new Map();
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) target.tile.setVisible(isIntersecting);
  }, { rootMargin: "80px" });
  signal.addEventListener("abort", () => {
    seen.disconnect();
    tiles.forEach((tile) => tile.setVisible(false));
  });

  function showSources(sources) {
    for (const source of sources) {
      if (!tiles.has(source.name)) {
        const tile = makeTile(source);
        tiles.set(source.name, tile);
        grid.append(tile.element);
        seen.observe(tile.element);
      }
      tiles.get(source.name).update(source);
    }
    for (const [name, tile] of tiles) {
      if (sources.some((source) => source.name === name)) continue;
      tile.setVisible(false);
      tile.element.remove();
      tiles.delete(name);
    }
    setAttribute(grid, "data-few", sources.length <= 4 ? sources.length : null);
    setText(summary, summaryOf(sources));
  }

  const message = (error) => !signal.aborted && setText(summary, error.message);
  repeat(() => get("sources", signal).then(showSources).catch(message), 2000, signal);
  repeat(() => get("areas", signal).then((list) => showAreas(areas, list)), 2000, signal);
  let alerts = [];
  let troubled = [];
  repeat(async () => {
    alerts = (await get("alerts", signal)).map(wordsOfAlert);
    troubles.replaceChildren(...alerts, ...troubled);
  }, 2000, signal);
  repeat(async () => { troubled = troublesOf(await get("health", signal)); }, 5000, signal);
}

function wordsOfAlert({ alert, area, zone, line, value, above, below }) {
  const exact = (limit) => number(limit, Number.isInteger(limit) ? 0 : 1);
  const limit = above === undefined ? `below ${exact(below)}` : `above ${exact(above)}`;
  return h("li", { class: "bad" }, `Alert ${alert}: ${area ?? zone ?? line} is at ${number(value)}, raised when ${limit}.`);
}

function summaryOf(sources) {
  if (!sources.length) return "There are no sources yet. They are named in the settings, or added with “peoplecounter source add”.";
  const states = Map.groupBy(sources, ({ state }) => state);
  return `${plural(sources.length, "source", "sources")}: ${[...states].map(([state, of]) => `${of.length} ${state}`).join(", ")}`;
}

/** What is wrong with processes and budgets, one line each. */
function troublesOf({ processes, budgets }) {
  const silent = processes.filter(({ state }) => state === "silent" || state === "down")
    .map(({ service, state }) => h("li", { class: "bad" }, h("a", { href: "#/health" }, `${service} is ${state}`)));
  const over = Object.values(budgets).filter(({ over_ms }) => over_ms > 0).length;
  return over ? [...silent, h("li", { class: "warn" }, h("a", { href: "#/health" }, `${plural(over, "budget is", "budgets are")} exceeded`))] : silent;
}

/** One source: its live picture, count and state. */
function makeTile(source) {
  const canvas = h("canvas", { role: "img" });
  const veil = h("span", { class: "veil" });
  const picture = h("a", { class: "picture", href: `#/camera/${encodeURIComponent(source.name)}`, "aria-label": `Open ${source.name}` }, canvas, veil);
  const count = h("span", { class: "count" });
  const unit = h("span", { class: "unit" }, "people");
  const mark = h("span", { class: "mark", hidden: true, title: "Parts of the picture were not counted" }, "incomplete");
  const state = h("span", { class: "state" });
  const [ins, outs] = [h("b", { class: "in" }), h("b", { class: "out" })];
  const over = h("span");
  const today = h("p", { class: "today", hidden: true }, ins, " in, ", outs, " out today", over);
  const facts = h("dl", { class: "facts" });
  const warning = h("p", { class: "warning", hidden: true });
  const element = h("article", { class: "tile", "aria-label": source.name }, picture,
    h("div", { class: "strip" },
      h("div", { class: "tally" }, count, unit),
      h("div", { class: "about" },
        h("div", { class: "title" }, h("h2", {}, h("a", { href: picture.getAttribute("href") }, source.name)), mark, state), today, facts, warning)));
  let latest = source;
  let unwatch = null;

  function showCount(value, complete) {
    setText(count, number(value));
    mark.hidden = complete !== false;
  }
  function showMessage(head, image) {
    shapeTile(canvas, head);
    paint(canvas, head, image, { boxes: true, shapes: true });
    if (!stateOf(latest).old) showCount(head.count, head.complete);
  }
  const tile = {
    element,
    setVisible(visible) {
      if (!visible) {
        unwatch?.();
        unwatch = null;
      } else if (!unwatch) unwatch = watch(source.name, widthFor(canvas, 960), FPS, showMessage);
    },
    update(now) {
      latest = now;
      const { tone, text, old } = stateOf(now);
      showCount(now.count, now.complete);
      shapeTile(canvas, now);
      setAttribute(canvas, "aria-label", `${now.name}: ${now.count === null ? "not counted yet" : plural(now.count, "person", "people")}`);
      element.dataset.tone = tone;
      setAttribute(element, "data-old", old || null);
      setText(state, now.state === "stale" ? "stale" : now.state);
      setText(veil, old ? text : "");
      setText(unit, now.count === null ? "not counted yet" : old ? "last count" : now.count === 1 ? "person" : "people");
      state.title = now.detail || text;
      setText(warning, sentence(now.warning || now.detail));
      warning.hidden = !(now.warning || now.detail);
      const dropped = sum(now.totals?.dropped);
      facts.replaceChildren(
        fact("Frames/s", number(now.fps, 1)),
        fact("Behind", now.end_to_end_ms === null ? NONE : `${number(now.end_to_end_ms)} ms`),
        fact("Dropped", number(dropped), dropped ? reasons(now.totals.dropped) : null));
      today.hidden = !Object.keys(now.lines).length;
      setText(ins, number(now.in_today));
      setText(outs, number(now.out_today));
      const lines = Object.keys(now.lines).length;
      setText(over, lines > 1 ? `, over ${lines} lines` : "");
    },
  };
  return (element.tile = tile);
}

const fact = (name, value, title = null) => h("div", { title }, h("dt", {}, name), h("dd", {}, value));

/** All tiles are 16:9, so that they make rows; a narrower picture is in the middle of its tile. */
function shapeTile(canvas, frame) {
  canvas.style.aspectRatio = aspectOf(frame);
  canvas.style.width = `${Math.min(1, (aspectOf(frame) * 9) / 16) * 100}%`;
}

function showAreas(section, list) {
  section.hidden = !list.length;
  for (const area of list) {
    let element = section.querySelector(`[data-area="${CSS.escape(area.name)}"]`);
    if (!element) section.append((element = makeArea(area)));
    element.update(area);
  }
}

/** An area's occupancy, with a form to correct it. */
function makeArea(area) {
  const occupancy = h("span", { class: "count" });
  const text = h("span", { class: "area-facts" });
  const answer = h("span", { class: "hint", role: "status" });
  const people = h("input", { type: "number", required: true, "aria-label": `People in ${area.name} now`, step: 1, min: 0 });
  const note = h("input", { type: "text", "aria-label": "Note", placeholder: "Note", maxlength: 200 });
  const form = h("form", { class: "correct", hidden: true, onsubmit: correct }, h("span", {}, "People inside"), people, note,
    h("button", { class: "primary" }, "Correct"), h("button", { type: "button", onclick: () => toggle(false) }, "Cancel"));
  const open = h("button", { type: "button", class: "quiet", onclick: () => toggle(true) }, "Correct…");
  function toggle(visible) {
    form.hidden = !visible;
    open.hidden = visible;
    if (visible) people.value = note.value = "";
    setText(answer, "");
    if (visible) people.focus();
    else open.focus();
  }
  async function correct(event) {
    event.preventDefault();
    try {
      const { before, after } = await post(at`areas/${area.name}/corrections`, { people: people.valueAsNumber, note: note.value });
      toggle(false);
      setText(answer, `Corrected from ${number(before)} to ${number(after)}.`);
      setText(occupancy, number(after));
    } catch (error) {
      setText(answer, error.message);
    }
  }
  const element = h("div", { class: "area", "data-area": area.name }, occupancy,
    h("div", {}, h("h2", {}, area.name), text, answer), mayEdit() && open, form);
  element.update = (now) => {
    setText(occupancy, number(now.occupancy));
    element.title = `Lines: ${now.lines.join(", ")}`;
    const missed = now.occupancy < 0 ? ". Below 0: lines have missed people" : "";
    setText(text, `${number(now.in)} in, ${number(now.out)} out${now.corrected ? `, corrected by ${number(now.corrected)}` : ""}${missed}`);
  };
  return element;
}
