// Requests to the dashboard's API. Errors are sentences that can be shown as they are.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** What GET /session answered last: role, timezone, video, history…; and whether a session has ended by itself. */
export const session = { role: null, login: false, timezone: "UTC", video: "on", history: false, version: "", ended: false };

/** "unreachable" when the server does not answer, "login" when it wants a login. */
export const apiEvents = new EventTarget();

export const mayEdit = () => session.role === "edit";

export async function loadSession() {
  return Object.assign(session, await get("session"));
}

export const get = (path, signal) => request("GET", path, undefined, signal);
export const put = (path, body) => request("PUT", path, body);
export const post = (path, body, signal) => request("POST", path, body, signal);
export const remove = (path) => request("DELETE", path);

/** Calls `heard` with each event of a kind, e.g. "crossing", until the signal is aborted. */
export function listen(kind, heard, signal) {
  if (signal.aborted) return;
  const events = new EventSource("/api/v1/events");
  let timer = 0;
  events.addEventListener(kind, ({ data }) => heard(JSON.parse(data)));
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) timer = setTimeout(() => listen(kind, heard, signal), 5000);
  };
  signal.addEventListener("abort", () => { events.close(); clearTimeout(timer); });
}

/** A path of the API with its parts escaped: at`sources/${name}/heat`. */
export function at(texts, ...names) {
  return texts.reduce((path, text, i) => path + encodeURIComponent(names[i - 1]) + text);
}

async function request(method, path, body, signal) {
  const timeout = AbortSignal.timeout(method === "GET" ? 6_000 : 70_000); // a restart answers when its process is ready
  let response;
  try {
    response = await fetch(`/api/v1/${path}`, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
  } catch {
    if (!signal?.aborted) apiEvents.dispatchEvent(new Event("unreachable"));
    throw new ApiError("The dashboard's server does not answer.", 0);
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401 && path !== "login") apiEvents.dispatchEvent(new Event("login"));
  throw new ApiError(answer.error ?? `The server answered with ${response.status}.`, response.status);
}
