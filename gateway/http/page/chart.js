// A curve over the steps, as SVG: the values, thinned to what the width can show, and their running mean.

import { drawn, element, put } from "./element.js";
import { count, figure } from "./words.js";

const MARGIN = { left: 56, right: 14, top: 12, bottom: 26 };
const ROWS = 20; // of the table that tells the same

export class Chart {
  #points = []; // {step, value}, ascending
  #means = []; // of #points
  #span = 1; // points that a mean is of
  #steps = 1;
  #scales = null;
  #pointed = null; // where the pointer is, in pixels

  // `mean`: whether a running mean is drawn over the values.
  constructor({ title, mean = false, tall = false }) {
    Object.assign(this, { title, mean });
    this.svg = drawn("svg", { class: `chart ${tall ? "tall" : ""}`, role: "img" });
    this.readout = element("span", { class: "readout faint", "aria-hidden": "true" });
    const tools = element("div", { class: "tools" }, element("h2", {}, title), this.readout);
    if (mean) {
      this.log = element("input", { type: "checkbox" });
      this.log.addEventListener("change", () => this.#draw());
      tools.append(element("label", {}, this.log, " Log scale"));
    }
    this.caption = element("p", { class: "faint caption" });
    this.table = element("tbody");
    const head = element("tr", {}, ...["Step", title, ...(mean ? ["Mean"] : [])].map((name) => element("th", {}, name)));
    this.numbers = element("details", {}, element("summary", {}, "As a table"),
      element("table", { class: "numbers" }, element("thead", {}, head), this.table));
    this.numbers.addEventListener("toggle", () => this.#tell());
    this.node = element("figure", {}, tools, this.svg, element("figcaption", {}, this.caption, this.numbers));
    new ResizeObserver(() => this.#draw()).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.#point(null));
  }

  // `steps`: the tune's steps in all.
  show(points, steps) {
    this.#points = points;
    this.#steps = steps;
    this.#span = this.mean ? Math.max(Math.round(points.length / 20), 5) : 1;
    this.#means = means(points, this.#span);
    this.#draw();
    this.#tell();
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (!width) return; // not shown
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const log = Boolean(this.log?.checked);
    const kept = this.#points.filter(({ value }) => !log || value > 0);
    if (!kept.length) {
      this.#scales = null;
      const words = this.#points.length ? "No value above 0" : "No step has been told yet";
      this.svg.replaceChildren(drawn("text", { x: width / 2, y: height / 2, class: "nothing" }, words));
      return;
    }
    const x = scale(Math.min(kept[0].step, 1), Math.max(kept.at(-1).step, 2), MARGIN.left, width - MARGIN.right);
    const y = valueScale(kept, height, log);
    this.#scales = { x, y, log };
    const curve = (points, kind) => drawn("path", { class: kind, d: path(thinned(points, x.at), x.at, y.at) });
    this.cross = drawn("g", { class: "cross" });
    this.svg.replaceChildren(
      ...y.ticks.map((value) => tickY(value, y.at(value), width)),
      ...ticks(x.from, x.to, Math.max(Math.floor(width / 110), 2)).filter(Number.isInteger)
        .map((step) => tickX(step, Math.min(x.at(step), width - 28), height)),
      curve(kept, this.mean ? "raw" : "mean"),
      ...(this.mean ? [curve(this.#means.filter(({ value }) => !log || value > 0), "mean")] : []),
      this.cross);
    this.#point(this.#pointed);
  }

  // What the curve says, for those who do not see it.
  #tell() {
    const points = this.#points;
    if (!points.length) {
      put(this.caption, "");
      this.svg.setAttribute("aria-label", `${this.title}. No step has been told yet.`);
      return;
    }
    const last = points.length - 1;
    const least = points.reduce((low, point) => (point.value < low.value ? point : low));
    const mean = this.mean ? `, mean of the last ${count(Math.min(this.#span, points.length))} told ${figure(this.#means[last].value)}` : "";
    const words = `Step ${count(points[last].step)} of ${count(this.#steps)}: ${figure(points[last].value)}${mean}. `
      + `First ${figure(points[0].value)}, least ${figure(least.value)} at step ${count(least.step)}.`;
    put(this.caption, words);
    this.svg.setAttribute("aria-label", `${this.title}. ${words}`);
    if (!this.numbers.open) return;
    const picked = [...new Set(Array.from({ length: Math.min(ROWS, points.length) },
      (_, row) => Math.round((row * last) / Math.max(Math.min(ROWS, points.length) - 1, 1))))];
    this.table.replaceChildren(...picked.map((index) => element("tr", {},
      element("td", {}, count(points[index].step)), element("td", {}, figure(points[index].value)),
      ...(this.mean ? [element("td", {}, figure(this.#means[index].value))] : []))));
  }

  #point(offset) {
    const scales = this.#scales;
    this.#pointed = offset;
    if (!scales) return;
    if (offset === null) {
      this.cross.replaceChildren();
      put(this.readout, "");
      return;
    }
    const index = nearest(this.#points, scales.x.back(offset));
    const { step, value } = this.#points[index];
    const x = scales.x.at(step), height = this.svg.clientHeight;
    this.cross.replaceChildren(drawn("line", { x1: x, x2: x, y1: MARGIN.top, y2: height - MARGIN.bottom }));
    if (!scales.log || value > 0) this.cross.append(drawn("circle", { cx: x, cy: scales.y.at(value), r: 3 }));
    put(this.readout, `Step ${count(step)}: ${figure(value)}${this.mean ? `, mean ${figure(this.#means[index].value)}` : ""}`);
  }
}

function scale(from, to, start, end) {
  const factor = (end - start) / (to - from);
  return { from, to, at: (value) => start + (value - from) * factor, back: (place) => from + (place - start) / factor };
}

function valueScale(points, height, log) {
  const bottom = height - MARGIN.bottom;
  let low = Infinity, high = -Infinity;
  for (const { value } of points) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (log) {
    const inner = scale(Math.log10(low / 1.05), Math.log10(high * 1.05), bottom, MARGIN.top);
    return { ticks: powers(low / 1.05, high * 1.05), at: (value) => inner.at(Math.log10(value)) };
  }
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  const inner = scale(low >= 0 ? Math.max(low - air, 0) : low - air, high + air, bottom, MARGIN.top);
  return { ticks: ticks(inner.from, inner.to, height > 180 ? 5 : 3), at: inner.at };
}

// Round values within a span, about so many.
function ticks(from, to, wanted) {
  const rough = (to - from) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((part) => part * power).find((part) => part >= rough);
  const first = Math.ceil(from / size);
  return Array.from({ length: Math.floor(to / size) - first + 1 }, (_, index) => Number(((first + index) * size).toPrecision(12)));
}

function powers(from, to) {
  const decades = Math.log10(to / from), parts = decades > 2 ? [1] : decades > 1 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  const found = [];
  for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power += 1) {
    for (const part of parts) found.push(Number((part * 10 ** power).toPrecision(6)));
  }
  return found.filter((value) => value >= from && value <= to);
}

function tickY(value, y, width) {
  return drawn("g", { class: "tick" }, drawn("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
    drawn("text", { x: MARGIN.left - 8, y: y + 4, class: "left" }, figure(value, 3)));
}

function tickX(step, x, height) {
  return drawn("g", { class: "tick" }, drawn("text", { x, y: height - 8, class: "below" }, count(step)));
}

function path(points, atX, atY) {
  return points.map(({ step, value }, index) => `${index ? "L" : "M"}${atX(step).toFixed(1)} ${atY(value).toFixed(1)}`).join("");
}

// Of what falls on one pixel's column the first, the least, the most and the last: drawn, they look as all would.
function thinned(points, at) {
  const kept = [];
  for (let start = 0; start < points.length; ) {
    const column = Math.round(at(points[start].step));
    let end = start + 1, low = start, high = start;
    for (; end < points.length && Math.round(at(points[end].step)) === column; end += 1) {
      if (points[end].value < points[low].value) low = end;
      if (points[end].value > points[high].value) high = end;
    }
    for (const index of [...new Set([start, low, high, end - 1])].sort((a, b) => a - b)) kept.push(points[index]);
    start = end;
  }
  return kept;
}

// For each point the mean of it and those before it, `span` in all.
function means(points, span) {
  let sum = 0;
  return points.map(({ step, value }, index) => {
    sum += value - (index >= span ? points[index - span].value : 0);
    return { step, value: sum / Math.min(index + 1, span) };
  });
}

function nearest(points, step) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle].step < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - points[low - 1].step < points[low].step - step ? low - 1 : low;
}
