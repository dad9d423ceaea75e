// A tune's pictures with what was said of them, and its LoRA to be downloaded.

import { told } from "./confirm.js";
import { element, put } from "./element.js";
import { tally } from "./record.js";
import { Refused } from "./session.js";
import { bytes, NONE } from "./words.js";

const PAGE = 100; // assets that one answer holds

export class Pictures {
  #rows = new Map(); // file's id -> its cells
  #said = new Map(); // and the verdict that they show

  constructor() {
    this.summary = element("summary");
    this.body = element("tbody");
    const head = element("tr", {}, ...["Picture", "Caption", "Verdict"].map((name) => element("th", { scope: "col" }, name)));
    this.node = element("section", {}, element("h2", {}, "Pictures"), element("details", {}, this.summary,
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Pictures" },
        element("table", { class: "pictures" }, element("thead", {}, head), this.body))));
  }

  show({ details, result, status }, verdicts) {
    const verdictOf = ({ file_id: id }) => this.#verdict(id, verdicts.get(id), result, status);
    if (!this.#rows.size) this.body.append(...details.files.map((file) => this.#row(file)));
    for (const file of details.files) this.#put(file.file_id, verdictOf(file), verdicts.get(file.file_id));
    put(this.summary, tally(details.files, verdictOf));
  }

  // The pictures' names, as far as the key may ask and they are there.
  async name({ details }, session, patience, signal) {
    const ids = details.files.map(({ file_id: id }) => id);
    for (let start = 0; start < ids.length; start += PAGE) {
      const asked = new URLSearchParams({ asset_ids: ids.slice(start, start + PAGE).join(","), limit: PAGE });
      try {
        const { data } = await patience.through(() => session.ask(`v1/assets?${asked}`, { signal }));
        for (const { id, name } of data) if (this.#rows.has(id)) put(this.#rows.get(id).name, name);
      } catch (error) {
        if (error instanceof Refused && error.status !== 401) return; // the ids will do
        throw error;
      }
    }
  }

  #row({ file_id: id, caption }) {
    const cells = { name: element("div"), verdict: element("div"), why: element("div", { class: "faint" }) };
    this.#rows.set(id, cells);
    return element("tr", {}, element("th", { scope: "row" }, cells.name, element("code", {}, id)),
      element("td", { class: "text" }, caption || NONE), element("td", { class: "text" }, cells.verdict, cells.why));
  }

  #put(id, verdict, said) {
    const why = said?.reason ? `${said.details || ""} (${said.reason})`.trim() : "";
    if (this.#said.get(id) === verdict + why) return;
    this.#said.set(id, verdict + why);
    const cells = this.#rows.get(id);
    put(cells.verdict, verdict);
    put(cells.why, why);
    cells.verdict.dataset.verdict = verdict;
  }

  #verdict(id, said, result, status) {
    if (result?.unready_assets.includes(id)) return "never uploaded";
    if (said ? !said.accepted : result?.rejected_assets.includes(id)) return "left out";
    if (said) return "good";
    return status === "pending" || status === "running" ? "not judged yet" : "not judged";
  }
}

export class Output {
  #known = "";

  constructor() {
    this.list = element("div");
    this.node = element("section", { hidden: "" }, element("h2", {}, "LoRA"), this.list);
  }

  show(ids, session, signal) {
    if (this.#known === ids.join()) return;
    this.#known = ids.join();
    this.node.hidden = !ids.length;
    this.list.replaceChildren(...ids.map((id) => lora(id, session, signal)));
  }
}

function lora(id, session, signal) {
  const name = element("strong"), size = element("span", { class: "faint" }), failure = element("p", { role: "alert", class: "bad" });
  const button = element("button", { type: "button", class: "download" }, "Download");
  button.addEventListener("click", () => telling(failure, async () => {
    // A signed URL lasts an hour, and this page may have been open for longer.
    const { asset, transfer_api: transfer } = await asked();
    const link = element("a", { href: transfer.get_url, download: `${asset.name}.safetensors`, rel: "noreferrer" });
    link.click();
  }));
  const asked = () => session.ask(`v1/assets/${encodeURIComponent(id)}`, { signal });
  telling(failure, async () => {
    const { asset } = await asked();
    put(name, asset.name);
    put(size, bytes(asset.size_bytes));
  });
  return element("div", { class: "lora" }, name, element("code", {}, id), size, button, failure);
}

async function telling(failure, work) {
  put(failure, "");
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") put(failure, told(error));
  }
}
