// The frame around all pages: header, navigation by the address's hash, login, theme.
import { apiEvents, loadSession, post, session } from "./api.js";
import { h, remember, remembered, setAttribute, setText } from "./dom.js";
import { connect, connection, disconnect } from "./live.js";
import * as camera from "./camera.js";
import * as charts from "./charts.js";
import * as editor from "./editor.js";
import * as health from "./health.js";
import * as login from "./login.js";
import * as overview from "./overview.js";

const PAGES = { "": overview, camera, edit: editor, charts, health };
const LINKS = [["#/", "Overview", ["", "camera", "edit"]], ["#/charts", "Charts", ["charts"]], ["#/health", "Health", ["health"]]];
const THEMES = { auto: "Colours: auto", light: "Colours: light", dark: "Colours: dark" };
const CONNECTION = { connecting: "connecting", connected: "connected", lost: "no connection" };

const main = document.getElementById("main");
const links = LINKS.map(([address, text]) => h("a", { href: address }, text));
const connectionText = h("span", { class: "connection", role: "status" });
const themeButton = h("button", { type: "button", class: "quiet", onclick: nextTheme });
const logoutButton = h("button", { type: "button", class: "quiet", onclick: logout, hidden: true }, "Log out");
let leaving = new AbortController();

document.getElementById("header").append(
  h("a", { class: "brand", href: "#/" }, h("img", { src: "/static/icon.svg", alt: "", width: 26, height: 26 }), "peoplecounter"),
  h("nav", { "aria-label": "Pages" }, links),
  connectionText,
  h("div", { class: "header-buttons" }, themeButton, logoutButton),
);

/** Shows the page that the address names. A page is `show(main, signal, name, query)`; the signal is aborted when it is left. */
async function go() {
  leaving.abort();
  leaving = new AbortController();
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [kind, ...rest] = path.split("/");
  const page = session.role ? PAGES[kind] : login;
  links.forEach((link, i) => setAttribute(link, "aria-current", session.role && LINKS[i][2].includes(kind) ? "page" : null));
  logoutButton.hidden = !(session.login && session.role);
  document.querySelector("nav").hidden = !session.role;
  main.replaceChildren();
  main.className = page ? `page-${page === login ? "login" : kind || "overview"}` : "";
  scrollTo(0, 0);
  if (!page) return main.append(h("h1", {}, "There is no such page"), h("p", {}, h("a", { href: "#/" }, "Go to the overview")));
  const { signal } = leaving;
  try {
    document.title = "peoplecounter";
    await page.show(main, signal, decodeURIComponent(rest.join("/")), new URLSearchParams(query), start);
  } catch (error) {
    if (!signal.aborted) main.append(h("p", { class: "notice bad", role: "alert" }, error.message));
  }
}

async function start() {
  try {
    await loadSession();
  } catch (error) {
    main.replaceChildren(h("p", { class: "notice bad", role: "alert" }, `${error.message} This page tries again every 3 seconds.`));
    return setTimeout(start, 3000);
  }
  if (session.role) connect();
  showConnection();
  go();
}

async function logout() {
  await post("logout").catch(() => {});
  session.ended = false;
  disconnect();
  start();
}

function showConnection() {
  setText(connectionText, session.role ? CONNECTION[connection.state] : "");
  document.documentElement.dataset.connection = connection.state;
}

function nextTheme() {
  const names = Object.keys(THEMES);
  remember("theme", names[(names.indexOf(remembered("theme", "auto")) + 1) % names.length]);
  showTheme();
}

function showTheme() {
  const theme = remembered("theme", "auto");
  document.documentElement.dataset.theme = theme;
  setText(themeButton, THEMES[theme] ?? THEMES.auto);
}

addEventListener("hashchange", () => { go(); main.focus({ preventScroll: true }); });
connection.addEventListener("change", showConnection);
apiEvents.addEventListener("login", async () => {
  if (!session.role) return;
  await loadSession().catch(() => {});
  if (session.role) return; // another request was refused, not this login
  disconnect();
  showConnection();
  session.ended = true;
  go();
});
showTheme();
showConnection();
start();
