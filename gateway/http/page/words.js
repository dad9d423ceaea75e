// Numbers and times as people read them. Knows no node but <time>.

import { element, put } from "./element.js";

const AGO = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const UNITS = [["year", 31_557_600], ["month", 2_629_800], ["day", 86_400], ["hour", 3600], ["minute", 60]];
const EXACT = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "long" });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const COUNT = new Intl.NumberFormat("en");

export const NONE = "–";

export function count(number) {
  return COUNT.format(number);
}

// "1 tune", "3 tunes".
export function counted(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

export function figure(number, digits = 4) {
  if (number === null || number === undefined) return NONE;
  const rounded = Number(number.toPrecision(digits));
  return rounded && Math.abs(rounded) < 0.001 ? rounded.toExponential() : String(rounded); // 5e-5: zeros are hard to count
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NONE;
  const whole = Math.max(Math.round(seconds), 0);
  const [days, hours, minutes] = [Math.floor(whole / 86_400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

export function bytes(size) {
  const unit = ["B", "kB", "MB", "GB"].findIndex((name, power) => size < 1000 ** (power + 1) || name === "GB");
  return `${unit ? (size / 1000 ** unit).toPrecision(3) : size} ${["B", "kB", "MB", "GB"][unit]}`;
}

export function ago(date) {
  const seconds = (Date.now() - date) / 1000;
  for (const [unit, size] of UNITS) if (seconds >= size) return AGO.format(-Math.round(seconds / size), unit);
  return "just now"; // or soon, by a clock that is behind the server's
}

// <time> that says how long ago, and exactly when in its title.
export function since() {
  return element("time");
}

export function putSince(node, text) {
  putTime(node, text, ago);
}

// Another <time>, that says the hour.
export function putClock(node, text) {
  putTime(node, text, (date) => CLOCK.format(date));
}

export function putExact(node, text) {
  putTime(node, text, (date) => EXACT.format(date));
}

function putTime(node, text, say) {
  if (!text) return put(node, NONE);
  const date = new Date(text);
  if (node.dateTime !== text) {
    node.dateTime = text;
    node.title = EXACT.format(date);
  }
  put(node, say(date));
}
