// The processes, their budgets, and frames that were not counted.
import { at, get, mayEdit, post } from "./api.js";
import { askedButton, h, repeat, setText } from "./dom.js";
import { NONE, duration, number, sum, words } from "./format.js";

const TONES = { ready: "good", starting: "warn", silent: "bad", down: "bad" };

export async function show(main, signal) {
  document.title = "Health – peoplecounter";
  const answer = h("p", { class: "notice", role: "status", hidden: true });
  const budgets = h("div", { class: "budgets" });
  const processes = h("tbody");
  const scaling = h("div", { class: "scaling" });
  const drops = h("div", { class: "scroll", tabindex: 0 });
  main.append(h("div", { class: "page-head" }, h("h1", {}, "Health")), answer,
    h("h2", { class: "section" }, "Processes"),
    h("div", { class: "scroll", tabindex: 0 }, h("table", { class: "processes" },
      h("thead", {}, h("tr", {}, ["Process", "State", "Running for", "Restarts", "Memory", "Slots", "Leases", "Supervisor", ""].map((text) => h("th", { scope: "col" }, text)))), processes)),
    scaling,
    h("h2", { class: "section" }, "Budgets", h("span", { class: "hint" }, " 95 % of the frames of the last 10 s took at most this long")), budgets,
    h("h2", { class: "section" }, "Frames that were not counted"), drops);
  const say = (text) => {
    setText(answer, text);
    answer.hidden = !text;
  };
  async function act(path, body, done) {
    say("One moment…");
    try {
      const { text } = await post(path, body);
      say(text || done);
      await load();
    } catch (error) {
      say(error.message);
    }
  }
  async function load() {
    const [now, sources] = await Promise.all([get("health", signal), get("sources", signal)]);
    budgets.replaceChildren(...Object.entries(now.budgets).map(budgetBar));
    if (!budgets.children.length) budgets.append(h("p", { class: "hint" }, "No budgets are set."));
    showDrops(drops, sources);
    keepFocus(scaling, () => scaling.replaceChildren(...(mayEdit() ? Object.entries(now.scalable).map(([service, n]) => scaleRow(service, n, act)) : [])));
    if (main.contains(document.activeElement?.closest(".asked"))) return; // a question is open
    processes.replaceChildren(...now.processes.map((process) => processRow(process, act)));
  }
  await repeat(() => load().catch((error) => {
    if (!signal.aborted) say(error.message);
  }), 2000, signal);
}

/** Changes elements; the button that had the focus has it again. */
function keepFocus(place, change) {
  const label = place.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
  change();
  if (label) place.querySelector(`[aria-label="${CSS.escape(label)}"]`)?.focus();
}

function processRow(process, act) {
  const slots = Object.entries(process.slots ?? {}).filter(([, n]) => n).map(([state, n]) => `${number(n)} ${words(state)}`).join(", ");
  return h("tr", {},
    h("th", { scope: "row" }, process.service, process.about && h("small", {}, process.about)),
    h("td", {}, h("span", { class: `state ${TONES[process.state] ?? "bad"}` }, process.state)),
    h("td", {}, process.age_s === null ? NONE : duration(process.age_s)),
    h("td", { class: process.restarts ? "warn" : null }, number(process.restarts)),
    h("td", {}, process.rss_mb === null || process.rss_mb === undefined ? NONE : `${number(process.rss_mb)} MB`),
    h("td", {}, slots || NONE), h("td", {}, number(process.leases)), h("td", {}, process.supervisor || NONE),
    h("td", {}, mayEdit() && askedButton("Restart", `Restart ${process.service}?`, () =>
      act(at`processes/${process.service}/restart`, undefined, `${process.service} has restarted.`))));
}

function scaleRow(service, n, act) {
  const to = (number) => act(at`services/${service}/scale`, { number }, `${service} is scaled to ${number}.`);
  return h("div", { class: "row", role: "group", "aria-label": `Processes of ${service}` },
    h("span", {}, `Processes of ${service}`),
    h("button", { type: "button", "aria-label": `One ${service} less`, disabled: n <= 1, onclick: () => to(n - 1) }, "−"),
    h("strong", {}, number(n)),
    h("button", { type: "button", "aria-label": `One more ${service}`, onclick: () => to(n + 1) }, "+"));
}

function budgetBar([name, { budget_ms, p95_ms, over_ms }]) {
  const bar = h("span", { class: "fill" });
  const most = 1.5; // times the budget: the right end
  bar.style.width = `${Math.min(1, (p95_ms ?? 0) / budget_ms / most) * 100}%`;
  return h("div", { class: `budget ${over_ms > 0 ? "over" : ""}` },
    h("span", {}, words(name)),
    h("span", { class: "bar-track", "aria-hidden": "true" }, bar, h("span", { class: "limit" })),
    h("span", { class: "figures" }, p95_ms === null || p95_ms === undefined ? "no frames" : `${number(p95_ms, 1)} of ${number(budget_ms)} ms`,
      over_ms > 0 && h("strong", {}, ` exceeded by ${number(over_ms, 1)} ms`)));
}

function showDrops(place, sources) {
  const all = [...new Set(sources.flatMap(({ totals }) => Object.keys(totals?.dropped ?? {})))].sort();
  const cells = ({ totals }) => [number(totals?.frames), number(totals?.counted), number(totals?.incomplete), number(sum(totals?.dropped)), ...all.map((reason) => number(totals?.dropped?.[reason] ?? 0))];
  place.replaceChildren(h("table", {},
    h("thead", {}, h("tr", {}, ["Source", "Frames", "Counted", "Incomplete", "Dropped", ...all.map((reason) => `Dropped: ${words(reason)}`)].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, sources.map((source) => h("tr", {}, h("th", { scope: "row" }, source.name), cells(source).map((text) => h("td", {}, text)))))));
}
