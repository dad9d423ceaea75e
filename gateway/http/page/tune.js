// One tune, as it stands and as it goes on. The log is streamed, for it is whole; the rest is asked for again and again.

import { Output, Pictures } from "./assets.js";
import { Chart } from "./chart.js";
import { confirmed } from "./confirm.js";
import { element, put } from "./element.js";
import { Facts, Recipe } from "./facts.js";
import { Log } from "./log.js";
import { Patience, Pause } from "./patience.js";
import { Record } from "./record.js";
import { Away } from "./session.js";
import { whileSeen } from "./sight.js";
import { Badge, Bar, ENDED } from "./status.js";
import { Stream } from "./stream.js";
import { count, duration, figure, NONE, putExact, since } from "./words.js";

const QUICK = 3; // seconds between two looks at what no event tells: phase, place in the queue, time to go
const HIDDEN = 15; // while nobody looks but at the tab's title
const DRAWN = 0.1; // seconds between two pictures of what the events tell

export class TuneView {
  #record = new Record();
  #tune = null;
  #asked = 0; // looks so far, and the newest one that is shown
  #shown = 0;
  #fresher = false; // events have told a step since
  #drawing = 0;
  #pause = new Pause();
  #leaving = new AbortController();
  #times = { created: since(), started: since(), ended: since() };

  // `back`: where the list is. `left`: called with a sentence once the tune is deleted. `live`: where a change is said aloud.
  constructor({ session, banner, id, back, live, left }) {
    Object.assign(this, { session, banner, id, live, left });
    this.path = `v1/tune/${encodeURIComponent(id)}`;
    this.signal = this.#leaving.signal;
    this.badge = new Badge();
    this.bar = new Bar();
    this.stats = new Facts("stats");
    this.facts = new Facts();
    this.recipe = new Recipe();
    this.pictures = new Pictures();
    this.output = new Output();
    this.log = new Log();
    this.loss = new Chart({ title: "Loss", mean: true, tall: true });
    this.rate = new Chart({ title: "Learning rate" });
    this.name = element("h1", { tabindex: "-1" }, "…");
    this.details = element("p", { class: "callout", hidden: "" });
    this.cancel = element("button", { type: "button", hidden: "" }, "Cancel");
    this.remove = element("button", { type: "button", class: "danger" }, "Delete");
    this.cancel.addEventListener("click", () => this.#cancel());
    this.remove.addEventListener("click", () => this.#delete());
    this.node = element("section", {}, element("p", {}, element("a", { href: back }, "← Tunes")), this.#whole());
    document.addEventListener("visibilitychange", () => document.hidden || this.#pause.wake(), { signal: this.signal });
  }

  #whole() {
    this.whole = element("div", { class: "tune", hidden: "" },
      element("div", { class: "head" }, this.name, this.badge.node, element("div", { class: "buttons" }, this.cancel, this.remove)),
      this.bar.node, this.stats.node, this.details,
      element("div", { class: "columns" },
        element("div", {}, this.loss.node, this.rate.node, this.log.node),
        element("div", {}, this.output.node, element("section", {}, element("h2", {}, "Tune"), this.facts.node),
          this.recipe.node)),
      this.pictures.node);
    return this.whole;
  }

  // Shows it until leave().
  async show() {
    document.title = "Tune · Tunesmith";
    scrollTo(0, 0);
    try {
      await this.#patience().through(() => this.#fetch());
      await Promise.all([this.#look(), this.#listen(), this.#name()]);
    } catch (error) {
      if (!this.signal.aborted && error.name !== "AbortError") this.#fail(error);
    }
  }

  leave() {
    clearTimeout(this.#drawing);
    this.#leaving.abort();
  }

  get #ended() {
    return ENDED.includes(this.#tune?.status);
  }

  #patience() {
    return new Patience(this.banner, this.signal);
  }

  async #look() {
    const patience = this.#patience();
    while (!this.#ended) {
      await this.#pause.take(document.hidden ? HIDDEN : QUICK, this.signal);
      await patience.through(() => this.#fetch());
    }
  }

  #name() {
    return this.pictures.name(this.#tune, this.session, this.#patience(), this.signal);
  }

  async #listen() {
    const patience = this.#patience();
    const stream = new Stream(this.session, this.id, (events) => this.#take(events));
    await patience.through(async () => {
      await whileSeen((signal) => stream.read(signal, patience), this.signal);
      await this.#fetch();
      if (!this.#ended) throw new Away("the stream ended before the tune"); // a proxy's doing
    });
  }

  async #fetch() {
    const number = (this.#asked += 1);
    const tune = await this.session.ask(this.path, { signal: this.signal });
    if (number > this.#shown) this.#stands(tune, number);
  }

  #stands(tune, number = (this.#asked += 1)) {
    this.#shown = number;
    const before = this.#tune?.status;
    this.#tune = tune;
    this.#fresher = false;
    this.#draw();
    if (before && before !== tune.status) put(this.live, `${tune.name} is ${tune.status}`);
  }

  #take(events) {
    events.forEach((event) => this.#record.add(event));
    this.#fresher = events.some(({ event }) => event.type === "metrics") || this.#fresher;
    if (events.some(({ event }) => event.type === "status_changed")) this.#pause.wake();
    this.#drawing ||= setTimeout(() => this.#draw(), DRAWN * 1000);
  }

  #draw() {
    clearTimeout(this.#drawing);
    this.#drawing = 0;
    const tune = this.#tune, record = this.#record;
    if (!tune) return;
    const { status } = tune, progress = this.#progress();
    this.whole.hidden = false;
    put(this.name, tune.name);
    document.title = `${titled(status, progress)} ${tune.name} · Tunesmith`;
    this.badge.show(status);
    this.bar.show(progress, status);
    this.stats.show(this.#stats(progress));
    const said = [...new Set([tune.status_details, progress.pending_reason])].filter(Boolean).join("\n");
    put(this.details, said);
    this.details.hidden = !said;
    this.details.classList.toggle("bad", status === "failed");
    this.cancel.hidden = this.#ended;
    this.cancel.disabled = record.cancelling;
    put(this.cancel, record.cancelling ? "Cancelling …" : "Cancel");
    this.facts.show(this.#facts());
    this.recipe.show(tune.details, record.recipe);
    this.pictures.show(tune, record.verdicts);
    this.output.show(tune.output_lora_ids, this.session, this.signal);
    this.loss.node.hidden = this.rate.node.hidden = !record.newest && status !== "running";
    this.loss.show(record.losses, progress.steps);
    this.rate.show(record.rates, progress.steps);
    this.log.show(record.lines);
  }

  // As last asked for, or by an event that came since.
  #progress() {
    const { progress, status } = this.#tune, { newest } = this.#record;
    if (status !== "running" || !this.#fresher) return progress;
    const { step, loss, steps_per_second: speed } = newest;
    const eta = speed ? Math.max(progress.steps - step, 0) / speed : null;
    return { ...progress, phase: "training", step, loss, steps_per_second: speed, eta_seconds: eta };
  }

  // Always the same of one status, so that nothing jumps.
  #stats({ phase, steps_per_second: speed, eta_seconds: eta, loss, queue_position: place }) {
    const { started, ended, attempts } = this.#record, { status } = this.#tune;
    const took = started ? (Date.parse(ended ?? new Date().toISOString()) - Date.parse(started)) / 1000 : null;
    if (status === "pending") return [["Place in the queue", place === null ? NONE : count(place)], ["Attempts so far", count(attempts)]];
    if (status !== "running") return [["Took", duration(took)], ["Loss at the end", figure(loss)], ["Attempts", count(attempts)]];
    const fast = speed ? `${figure(speed, 3)} steps/s` : NONE;
    return [["Phase", phase ?? NONE], ["Time to go", duration(eta)], ["Speed", fast], ["Running for", duration(took)], ["Loss", figure(loss)]];
  }

  #facts() {
    const tune = this.#tune, { details, result } = tune, { started, ended, attempts } = this.#record;
    const { name, checkpoint_id: asked, engine } = details.base_checkpoint;
    putExact(this.#times.created, tune.created_at);
    putExact(this.#times.started, started);
    putExact(this.#times.ended, ended);
    const metadata = Object.entries(tune.metadata).map(([key, value]) => [`metadata: ${key}`, value]);
    return [
      ["Id", tune.id],
      ["Description", tune.description],
      ["Base", name && name !== asked ? `${name} (${asked})` : asked],
      ["Engine", engine],
      ["Trigger words", details.trigger_words.join(", ")],
      ["Seed asked for", details.seed === null ? null : String(details.seed)],
      ["Resizes pictures", details.resize_images === false ? "no" : "yes"],
      ["If a picture is refused", tune.continue_on_rejection ? "it goes on without it" : "the tune fails"],
      ["Pictures trained on", typeof result?.number_of_available_assets === "number" ? count(result.number_of_available_assets) : null],
      ["Priority", String(tune.priority)],
      ["Created", this.#times.created],
      ["Started", started && this.#times.started],
      ["Ended", ended && this.#times.ended],
      ["Attempts", attempts > 1 ? count(attempts) : null],
      ...metadata,
    ];
  }

  async #cancel() {
    const { name } = this.#tune;
    const done = await confirmed({
      title: `Cancel ${name}?`,
      words: "It ends where it is, and there will be no LoRA.",
      verb: "Cancel the tune",
      keep: "Let it go on",
      act: async () => {
        this.#record.cancelling = true;
        try {
          this.#stands(await this.session.ask(`${this.path}/cancel`, { verb: "POST", body: {}, signal: this.signal }));
        } catch (error) {
          this.#record.cancelling = false;
          throw error;
        }
      },
    });
    if (done) this.name.focus(); // the button can be pressed no more
  }

  async #delete() {
    const { name } = this.#tune;
    const lives = this.#ended ? "" : "It is cancelled first. ";
    const done = await confirmed({
      title: `Delete ${name}?`,
      words: `${lives}Its name is free again. Its pictures and its LoRA stay.`,
      verb: "Delete the tune",
      keep: "Keep it",
      act: () => this.session.ask(this.path, { verb: "DELETE", signal: this.signal }),
    });
    if (done) this.left(`${name} was deleted.`);
  }

  #fail(error) {
    this.leave();
    const gone = error.status === 404;
    document.title = `${gone ? "No such tune" : "Tune"} · Tunesmith`;
    const words = gone ? `There is no tune ${this.id}: it was deleted, or it is not of this key's tenant.` : error.message;
    this.node.append(element("p", { class: "callout bad", role: "alert" }, words));
    this.cancel.hidden = this.remove.hidden = true;
  }
}

function titled(status, { step, steps }) {
  return status === "running" ? `${Math.floor((100 * step) / steps)}%` : `${status}:`;
}
