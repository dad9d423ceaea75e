// A tune's status as a word and a shape, for not everyone sees the colours; its progress as a bar.

import { drawn, element, put } from "./element.js";
import { count } from "./words.js";

const SHAPES = {
  pending: "M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 1 0 0-11M8 5v3.2l2 1.3",
  running: "M8 2.5a5.5 5.5 0 1 1-5.5 5.5",
  succeeded: "M2.8 8.6l3.3 3.4l7-7.6",
  failed: "M3.5 3.5l9 9M12.5 3.5l-9 9",
  cancelled: "M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 1 0 0-11M4.2 11.8l7.6-7.6",
};

export const ENDED = ["succeeded", "failed", "cancelled"];

export class Badge {
  #shape = drawn("path");
  #word = element("span");

  constructor() {
    const icon = drawn("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, this.#shape);
    this.node = element("span", { class: "badge" }, icon, this.#word);
  }

  show(status) {
    if (this.node.dataset.status === status) return;
    this.node.dataset.status = status;
    this.#shape.setAttribute("d", SHAPES[status] ?? SHAPES.pending);
    put(this.#word, status);
  }
}

export class Bar {
  #bar = element("progress", { max: 1, value: 0, "aria-label": "Steps" });
  #figures = element("span", { class: "figures" });

  constructor() {
    this.node = element("div", { class: "bar" }, this.#bar, this.#figures);
  }

  show({ step, steps }, status) {
    this.#bar.max = steps;
    this.#bar.value = step;
    this.#bar.dataset.status = status;
    put(this.#figures, `${count(step)} / ${count(steps)}`);
  }
}
