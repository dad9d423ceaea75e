// The tenant's tunes, newest first, a page at a time. Its rows are kept and changed in place.

import { arrange, element, put } from "./element.js";
import { Patience, Pause } from "./patience.js";
import { Badge, Bar, ENDED } from "./status.js";
import { ago, count, duration, NONE, putSince, since } from "./words.js";

const PAGE = 25; // tunes
const QUICK = 3; // seconds between two looks while something on the page may change
const SLOW = 15; // for a new tune may come
const HIDDEN = 60; // while nobody looks

const COLUMNS = ["Name", "Status", "Progress", "Base", "Created", "Id"];

// What the address says of the list, and the other way round.
export function placeOf(hash) {
  const said = new URLSearchParams(hash);
  return { page: Math.max(Number.parseInt(said.get("page"), 10) || 1, 1), name: said.get("name") ?? "" };
}

export function hashOf({ page, name }) {
  const said = new URLSearchParams();
  if (name) said.set("name", name);
  if (page > 1) said.set("page", page);
  return `#${said}`;
}

export class List {
  #rows = new Map(); // of the page that is shown: id -> Row
  #pause = new Pause();
  #leaving = new AbortController();
  #scrolled = 0;

  constructor(session, banner) {
    Object.assign(this, { session, banner, place: placeOf("") });
    this.filter = element("input", { id: "name", type: "search", autocomplete: "off", placeholder: "exact name" });
    const form = element("form", { role: "search", class: "filter" },
      element("label", { for: "name" }, "Name"), this.filter, element("button", {}, "Find"));
    form.addEventListener("submit", (event) => (event.preventDefault(), this.#find()));
    this.filter.addEventListener("search", () => this.filter.value || this.#find()); // its cross was pressed
    this.body = element("tbody");
    const head = element("tr", {}, ...COLUMNS.map((name) => element("th", { scope: "col" }, name)));
    this.table = element("table", { class: "tunes", "aria-label": "Tunes" }, element("thead", {}, head), this.body);
    this.empty = element("div", { class: "empty" });
    this.range = element("span", { role: "status" });
    this.previous = element("a", { rel: "prev" }, "← Newer");
    this.next = element("a", { rel: "next" }, "Older →");
    const pages = element("nav", { class: "pages", "aria-label": "Pages" }, this.range, this.previous, this.next);
    this.loading = element("p", { class: "faint" }, "Loading …");
    this.failure = element("p", { class: "callout bad", role: "alert", hidden: "" });
    this.shown = element("div", { hidden: "" }, this.table, this.empty, pages);
    this.node = element("section", {},
      element("div", { class: "head" }, element("h1", { tabindex: "-1" }, "Tunes"), form),
      this.failure, this.loading, this.shown);
    document.addEventListener("visibilitychange", () => document.hidden || this.#pause.wake(), { signal: session.signal });
  }

  // Shows a page, and keeps it up to date until leave(). `from`: the tune that one comes back from.
  async show(place, from) {
    this.leave();
    const moved = place.page !== this.place.page || place.name !== this.place.name;
    Object.assign(this, { place });
    this.#leaving = new AbortController();
    const { signal } = this.#leaving;
    this.filter.value = place.name;
    document.title = "Tunes · Tunesmith";
    if (moved) this.#scrolled = 0;
    this.shown.ariaBusy = String(moved); // what stands there until the answer comes is of another page
    scrollTo(0, this.#scrolled);
    this.#rows.get(from)?.link.focus({ preventScroll: true });
    const patience = new Patience(this.banner, signal);
    try {
      while (!signal.aborted) {
        const found = await patience.through(() => this.session.ask(this.#path(), { signal }));
        if (signal.aborted) return;
        if (!found.data.length && found.total && place.page > 1) {
          location.replace(hashOf({ ...place, page: Math.ceil(found.total / PAGE) })); // the last ones were deleted
          return;
        }
        this.#put(found);
        const moving = found.data.some(({ status }) => !ENDED.includes(status));
        await this.#pause.take(document.hidden ? HIDDEN : moving ? QUICK : SLOW, signal);
      }
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      this.loading.hidden = true;
      this.failure.hidden = false;
      put(this.failure, error.message);
    }
  }

  leave() {
    if (!this.#leaving.signal.aborted) this.#scrolled = scrollY;
    this.#leaving.abort();
  }

  #find() {
    location.hash = hashOf({ page: 1, name: this.filter.value.trim() });
  }

  #path() {
    const { page, name } = this.place;
    const asked = new URLSearchParams({ limit: PAGE, offset: (page - 1) * PAGE });
    if (name) asked.set("name", name);
    return `v1/tunes?${asked}`;
  }

  #put({ data, total, has_more: more }) {
    this.failure.hidden = this.loading.hidden = true;
    this.shown.hidden = false;
    this.shown.ariaBusy = "false";
    const rows = data.map((tune) => [tune.id, this.#rows.get(tune.id) ?? new Row(tune)]);
    this.#rows = new Map(rows);
    data.forEach((tune) => this.#rows.get(tune.id).show(tune));
    arrange(this.body, rows.map(([, row]) => row.node));
    this.table.hidden = !data.length;
    this.empty.hidden = data.length > 0;
    if (!data.length) this.empty.replaceChildren(...this.#nothing());
    const { page } = this.place, first = (page - 1) * PAGE;
    put(this.range, data.length ? `${count(first + 1)}–${count(first + data.length)} of ${count(total)}` : "");
    leads(this.previous, page > 1 && hashOf({ ...this.place, page: page - 1 }));
    leads(this.next, more && hashOf({ ...this.place, page: page + 1 }));
  }

  #nothing() {
    if (this.place.name) {
      return [element("h2", {}, `No tune has the name “${this.place.name}”`),
        element("p", {}, "The whole name is wanted, letter by letter. ", element("a", { href: "#" }, "All tunes"))];
    }
    return [element("h2", {}, "No tunes yet"),
      element("p", {}, "A tune is made by ", element("code", {}, "POST v1/tune"),
        ", which names pictures, a base and the steps; it stands here the moment it is accepted."),
      element("p", {}, element("a", { href: "docs#CreateTune" }, "How a tune is made"))];
  }
}

// A link that leads nowhere is not there.
function leads(link, hash) {
  link.hidden = !hash;
  if (hash) link.setAttribute("href", hash);
}

class Row {
  #badge = new Badge();
  #bar = new Bar();
  #why = element("span", { class: "why" });
  #base = element("td", { class: "base" });
  #created = since();

  constructor(tune) {
    this.link = element("a", { href: `#${tune.id}` });
    this.node = element("tr", {},
      element("th", { scope: "row", class: "name" }, this.link),
      element("td", {}, this.#badge.node),
      element("td", { class: "progress" }, this.#bar.node, this.#why),
      this.#base,
      element("td", { class: "created" }, this.#created),
      element("td", { class: "id" }, element("code", {}, tune.id)));
  }

  show(tune) {
    const { name, status, progress, details, created_at: created } = tune;
    put(this.link, name);
    this.link.title = name;
    this.#badge.show(status);
    this.#bar.show(progress, status);
    put(this.#why, why(tune));
    this.#why.title = this.#why.textContent;
    const { name: base, checkpoint_id: asked } = details.base_checkpoint;
    put(this.#base, base ?? asked ?? NONE);
    this.#base.title = asked;
    putSince(this.#created, created);
  }
}

// What a glance wants to know beside the steps.
function why({ status, progress, status_details: details, succeeded_at: succeeded }) {
  const { queue_position: place, pending_reason: reason, phase, eta_seconds: eta } = progress;
  if (status === "pending") return [place && `place ${count(place)} in the queue`, reason].filter(Boolean).join(": ");
  if (status === "succeeded") return `done ${ago(new Date(succeeded))}`;
  if (status !== "running") return details;
  return eta !== null && phase === "training" ? `${duration(eta)} to go` : (phase ?? "");
}
