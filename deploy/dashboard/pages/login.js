// The login form, where tokens are required.
import { post, session } from "./api.js";
import { h, setText } from "./dom.js";

export function show(main, signal, name, query, start) {
  const token = h("input", { id: "token", type: "password", autocomplete: "current-password", required: true, spellcheck: "false", "aria-describedby": "login-error" });
  const error = h("p", { id: "login-error", class: "error", role: "alert" });
  const button = h("button", { class: "primary" }, "Log in");
  const form = h("form", { class: "login", onsubmit: send },
    h("h1", {}, "Log in"),
    session.ended && h("p", { class: "hint" }, "Your session has ended."),
    h("label", { for: "token" }, "Access token"), token, error, button,
    h("p", { class: "hint" }, "Ask whoever runs this dashboard for a token."));
  async function send(event) {
    event.preventDefault();
    button.disabled = true;
    try {
      await post("login", { token: token.value });
      start();
    } catch (wrong) {
      setText(error, wrong.message);
      token.select();
    } finally {
      button.disabled = false;
    }
  }
  main.append(form);
  token.focus();
}
