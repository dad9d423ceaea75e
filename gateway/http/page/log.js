// The lines of a tune's log, newest last. Who reads further up is not moved; who is at its end stays there.

import { element, put } from "./element.js";
import { putClock } from "./words.js";

export class Log {
  #lines = []; // as they are shown

  constructor() {
    this.list = element("ol");
    this.box = element("div", { class: "log", role: "log", "aria-live": "off", "aria-label": "Log", tabindex: "0" }, this.list);
    this.node = element("section", {}, element("h2", {}, "Log"), this.box);
  }

  show(lines) {
    const { scrollHeight, scrollTop, clientHeight } = this.box;
    const atEnd = scrollHeight - scrollTop - clientHeight < 24;
    const known = this.#lines.length;
    if (known) this.#lines[known - 1].show(lines[known - 1]); // it alone may have changed
    this.#lines.push(...lines.slice(known).map((line) => new Line(line)));
    this.list.append(...this.#lines.slice(known).map(({ node }) => node));
    if (atEnd) this.box.scrollTop = this.box.scrollHeight;
  }
}

class Line {
  #time = element("time");
  #words = element("span");

  constructor(line) {
    this.node = element("li", { "data-tone": line.tone, "data-event": line.id },
      this.#time, element("code", {}, line.tag), this.#words);
    this.show(line);
  }

  show({ at, words }) {
    putClock(this.#time, at);
    put(this.#words, words);
  }
}
