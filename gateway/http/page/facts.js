// Names and values side by side, changed in place; and how a tune's request and recipe are told by them.

import { arrange, element, put } from "./element.js";
import { NONE } from "./words.js";

export class Facts {
  #rows = new Map(); // name -> its row

  constructor(kind = "facts") {
    this.node = element("dl", { class: kind });
  }

  // `facts`: [name, value]; a value is a text or a node, and one that is null is left out.
  show(facts) {
    const told = facts.filter(([, value]) => value !== null && value !== undefined && value !== "");
    arrange(this.node, told.map(([name, value]) => this.#row(name, value)));
  }

  #row(name, value) {
    if (!this.#rows.has(name)) {
      this.#rows.set(name, element("div", {}, element("dt", {}, name), element("dd")));
    }
    const row = this.#rows.get(name), told = row.lastElementChild;
    if (typeof value === "string") put(told, value);
    else if (told.firstChild !== value) told.replaceChildren(value);
    return row;
  }
}

// The hyperparameters, those that were asked for marked; and once they are fixed, what else the bytes depend on.
export class Recipe {
  #hyperparameters = new Facts("facts recipe");
  #rest = new Facts("facts recipe");
  #more = element("details", { hidden: "" }, element("summary", {}, "What else its bytes depend on"), this.#rest.node);
  #note = element("p", { class: "faint" });

  constructor() {
    this.node = element("section", {}, element("h2", {}, "Recipe"), this.#note, this.#hyperparameters.node,
      this.#more);
  }

  show(details, resolved) {
    const asked = Object.entries(details.hyperparameters ?? {}).filter(([, value]) => value !== null);
    put(this.#note, resolved ? "As the first attempt fixed it; a dot marks what was asked for."
      : asked.length ? "What was asked for; the first attempt fixes the rest." : "Nothing was asked for; the first attempt fixes it.");
    const names = new Set(asked.map(([name]) => name));
    const fixed = resolved ? Object.entries(resolved.recipe.hyperparameters ?? {}) : asked;
    this.#hyperparameters.show(fixed.map(([name, value]) => [names.has(name) ? `${name} •` : name, said(value)]));
    this.#hyperparameters.node.hidden = !fixed.length;
    this.#more.hidden = !resolved;
    if (!resolved) return;
    const { recipe, sha256 } = resolved;
    const plain = Object.entries(recipe).filter(([, value]) => typeof value !== "object" && value !== "");
    const around = Object.entries(recipe.environment ?? {}).map(([name, value]) => [name, said(value)]);
    this.#rest.show([...plain.map(([name, value]) => [name, said(value)]), ...around, ["sha256", sha256]]);
  }
}

function said(value) {
  return value === null ? NONE : typeof value === "object" ? JSON.stringify(value) : String(value);
}
