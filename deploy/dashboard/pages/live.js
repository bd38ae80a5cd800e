// The WebSocket of live pictures: one for the page, opened again when it breaks.
import { apiEvents } from "./api.js";

const DELAY_MS = { first: 500, most: 10_000 };
const watched = new Map(); // source -> { source, width, fps, show }
let socket = null;
let delay_ms = DELAY_MS.first;
let timer = 0;
let wanted = false;

/** Its state is "connecting", "connected" or "lost"; "change" is sent when it changes. */
export const connection = Object.assign(new EventTarget(), { state: "connecting" });

/** Asks for live messages of a source until the returned function is called.
    `show(head, picture)` draws one; `picture` is an ImageBitmap, or null, and is closed afterwards. */
export function watch(source, width, fps, show) {
  const entry = { source, width, fps, show };
  watched.set(source, entry);
  tellSoon();
  return () => {
    if (watched.get(source) === entry) watched.delete(source);
    tellSoon();
  };
}

export function connect() {
  wanted = true;
  if (!socket) open();
}

export function disconnect() {
  wanted = false;
  clearTimeout(timer);
  socket?.close();
}

function open() {
  clearTimeout(timer);
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const mine = (socket = new WebSocket(`${scheme}://${location.host}/api/v1/live`));
  mine.binaryType = "arraybuffer";
  mine.onopen = () => {
    delay_ms = DELAY_MS.first;
    setState("connected");
    tell();
  };
  mine.onmessage = ({ data }) => receive(mine, data);
  mine.onclose = ({ code }) => {
    if (socket !== mine) return;
    socket = null;
    if (!wanted) return setState("connecting");
    setState("lost");
    if (code === 1008) apiEvents.dispatchEvent(new Event("login"));
    again();
  };
}

/** Opens it again soon, and later each time. */
function again() {
  timer = setTimeout(open, delay_ms * (0.75 + Math.random() / 2));
  delay_ms = Math.min(DELAY_MS.most, delay_ms * 2);
}

/** Draws a message in full before the next one of its source is asked for. */
async function receive(mine, data) {
  const bytes = new DataView(data).getUint32(0);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, bytes)));
  const entry = watched.get(head.source);
  try {
    const jpeg = new Uint8Array(data, 4 + bytes);
    const picture = jpeg.length && entry ? await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" })) : null;
    try {
      if (entry && watched.get(head.source) === entry) entry.show(head, picture);
    } finally {
      picture?.close();
    }
  } catch (error) {
    console.warn(`A message of ${head.source} could not be drawn:`, error);
  }
  if (mine.readyState === WebSocket.OPEN) mine.send(JSON.stringify({ ack: head.source, seq: head.seq }));
}

let told = 0;
function tellSoon() {
  clearTimeout(told);
  told = setTimeout(tell, 40); // scrolling changes many tiles at once
}

function tell() {
  if (socket?.readyState !== WebSocket.OPEN) return;
  const list = document.hidden ? [] : [...watched.values()].map(({ source, width, fps }) => ({ source, width, fps }));
  socket.send(JSON.stringify({ watch: list }));
}

function setState(state) {
  if (connection.state === state) return;
  connection.state = state;
  connection.dispatchEvent(new Event("change"));
}

document.addEventListener("visibilitychange", tell);
// A server that went away without a word is noticed by the next request.
apiEvents.addEventListener("unreachable", () => {
  if (socket?.readyState !== WebSocket.OPEN) return;
  const gone = socket;
  socket = null; // its end may not be confirmed for long
  gone.close();
  setState("lost");
  again();
});
