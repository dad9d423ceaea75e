// What a tune's events tell, put together as they come: its curves, its verdicts, its times, and the lines of its log.

import { ENDED } from "./status.js";
import { count, counted, figure } from "./words.js";

// What the usual way of a tune is called; every other reason has details of its own.
const WAYS = {
  QUEUED: "Queued",
  ASSIGNED: "A trainer takes it on",
  SUCCEEDED: "Succeeded: the LoRA is there",
  CANCEL_REQUESTED: "Cancel asked for",
  CANCELLED: "Cancelled",
  CANCEL_OBSERVED: "Cancelled: its trainer has stopped",
};

export class Record {
  losses = []; // {step, value}, ascending
  rates = []; // the same of the learning rate
  newest = null; // the metrics of the newest step
  verdicts = new Map(); // file's id -> PictureVerdict
  recipe = null; // RecipeResolved
  started = null; // when its first attempt began, and when it ended
  ended = null;
  attempts = 0;
  cancelling = false;
  lines = []; // {id, at, tone, tag, words}; only the last one ever changes
  #epoch = 0;
  #first = 0; // step of the newest line of steps

  add({ id, created_at: at, event }) {
    const [tone, tag, words] = this[`_${event.type}`]?.(event, at) ?? ["plain", event.type, ""];
    const last = this.lines.at(-1);
    if (tone === "steps" && last?.tone === tone) Object.assign(last, { at, words });
    else this.lines.push({ id, at, tone, tag, words });
  }

  _status_changed({ status, details, reason, attempt }, at) {
    if (reason === "STARTED") this.started ??= at;
    if (ENDED.includes(status)) this.ended = at;
    this.attempts = Math.max(this.attempts, attempt);
    this.cancelling = reason === "CANCEL_REQUESTED";
    const way = reason === "STARTED" ? `Attempt ${attempt} begins` : (WAYS[reason] ?? (details ? "" : `It is ${status}`));
    return [status, reason, [way, details].filter(Boolean).join(": ")];
  }

  _verdict(verdict) {
    this.verdicts.set(verdict.file_id, verdict);
    const { file_id: file, accepted, reason, details } = verdict;
    if (!accepted) return ["bad", reason, `${file} is left out: ${details || reason}`];
    return reason ? ["warning", reason, `${file}: ${details || reason}`] : ["plain", "VERDICT", `${file} is good`];
  }

  _recipe_resolved(resolved) {
    this.recipe = resolved;
    return ["plain", "RECIPE", `All that was left open is fixed: seed ${resolved.recipe.seed}`];
  }

  _warning({ reason, details }) {
    return ["warning", reason, details];
  }

  _metrics({ steps }) {
    if (this.lines.at(-1)?.tone !== "steps") this.#first = steps[0].step;
    for (const metrics of steps) this.#step(metrics);
    const { step, loss } = this.newest;
    const span = this.#first < step ? `Steps ${count(this.#first)}–${count(step)}` : `Step ${count(step)}`;
    return ["steps", "STEPS", `${span}, loss ${figure(loss)}`];
  }

  _sample({ step, prompt, asset_id: asset }) {
    return ["plain", "SAMPLE", `After step ${count(step)}, “${prompt}”: ${asset}`];
  }

  _snapshot({ step }) {
    return ["plain", "SNAPSHOT", `It can go on from step ${count(step)}`];
  }

  // A later attempt goes on from a snapshot and makes some steps anew: what the earlier one made of them no longer counts.
  #step(metrics) {
    const { step, loss, learning_rate: rate, epoch } = metrics;
    if (epoch > this.#epoch) {
      this.#epoch = epoch;
      for (const curve of [this.losses, this.rates]) while (curve.length && curve.at(-1).step >= step) curve.pop();
    }
    if (loss !== null) this.losses.push({ step, value: loss }); // null: it was no number
    if (rate !== null) this.rates.push({ step, value: rate });
    this.newest = metrics;
  }
}

// "12 pictures: 10 good, 1 left out, 1 not judged yet".
export function tally(files, verdictOf) {
  const counts = new Map();
  for (const file of files) counts.set(verdictOf(file), (counts.get(verdictOf(file)) ?? 0) + 1);
  return `${counted(files.length, "picture")}: ${[...counts].map(([verdict, number]) => `${count(number)} ${verdict}`).join(", ")}`;
}
