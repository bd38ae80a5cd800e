// Numbers, durations, times and states as words.
import { session } from "./api.js";

export const NONE = "–"; // not known

export const number = (value, digits = 0) =>
  value === null || value === undefined ? NONE : value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** Only what is complete is 100 %. */
export const percent = (share) => (share >= 1 ? "100 %" : `${Math.min(99.9, share * 100).toFixed(share > 0.99 ? 1 : 0)} %`);

export const plural = (value, one, many) => `${number(value)} ${value === 1 ? one : many}`;

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 && s < 600 ? ` ${s % 60} s` : ""}`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

const FORMATS = {
  clock: { hour: "2-digit", minute: "2-digit", second: "2-digit" },
  minute: { hour: "2-digit", minute: "2-digit" },
  moment: { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" },
  day: { weekday: "short", day: "numeric", month: "short" },
  month: { month: "short", year: "numeric" },
};
const formatters = new Map();

/** A time in the time zone of the session, e.g. time("2026-11-27T08:00:00Z", "clock"). */
export function time(value, format = "clock") {
  const key = `${session.timezone} ${format}`;
  if (!formatters.has(key)) {
    formatters.set(key, new Intl.DateTimeFormat("en-GB", { timeZone: session.timezone, hourCycle: "h23", ...FORMATS[format] }));
  }
  const date = value instanceof Date ? value : new Date(value);
  return Number.isNaN(date.getTime()) ? NONE : formatters.get(key).format(date);
}

/** "2026-11-27T08:15" of a moment, in the time zone of the session: what the API takes as from and to. */
export function localMinute(date) {
  const part = Object.fromEntries(
    new Intl.DateTimeFormat("en-GB", { timeZone: session.timezone, hourCycle: "h23", year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit" })
      .formatToParts(date).map(({ type, value }) => [type, value]));
  return `${part.year}-${part.month}-${part.day}T${part.hour}:${part.minute}`;
}

const STATES = {
  waiting: ["off", "waiting"], opening: ["off", "opening"], online: ["good", "online"], stale: ["bad", "stale"],
  reconnecting: ["bad", "reconnecting"], ended: ["off", "ended"],
};

/** The state of a source: a class for its colour, words, and whether its picture is old. */
export function stateOf(source) {
  const [tone, word] = STATES[source.state] ?? ["bad", source.state];
  const age_s = source.seconds_since_frame;
  const old = source.state !== "online";
  if (source.state === "stale" && age_s !== null) return { tone, old, text: `no frame for ${duration(age_s)}` };
  if (source.state === "reconnecting" && age_s !== null) return { tone, old, text: `reconnecting, no frame for ${duration(age_s)}` };
  return { tone, old, text: word };
}

export const sum = (numbers) => Object.values(numbers ?? {}).reduce((total, n) => total + n, 0);

/** "79 no credit, 4 too late" of {no_credit: 79, too_late: 4}. */
export const reasons = (dropped) =>
  Object.entries(dropped ?? {}).filter(([, n]) => n).map(([reason, n]) => `${number(n)} ${words(reason)}`).join(", ") || "none";

/** With a capital and a full stop. */
export const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "");

export const words = (name) => name.replaceAll("_", " ");

/** The last number of an id such as "door/ab12/17". */
export const shortId = (id) => id.slice(id.lastIndexOf("/") + 1);
