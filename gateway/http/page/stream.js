// A tune's events as they come, each once, whatever breaks on the way. An EventSource could not send the key.

import { Away, Refused } from "./session.js";

const SILENCE = 45; // seconds; the gateway says something every fifteen, so a connection silent for so long is dead

export class Stream {
  #last = 0; // the id of the last event that was taken

  // `take` is given the events, in their order; those that came together, together.
  constructor(session, tuneId, take) {
    Object.assign(this, { session, path: `v1/tune/${encodeURIComponent(tuneId)}/events`, take });
  }

  // Reads from where it was until the gateway says no more. Throws Away where it broke off, or Refused.
  async read(signal, patience) {
    const silent = new AbortController();
    let timer;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silent.abort(), SILENCE * 1000);
    };
    const broken = AbortSignal.any([signal, silent.signal]);
    const headers = { Accept: "application/x-ndjson", ...(this.#last && { "Last-Event-ID": String(this.#last) }) };
    try {
      heard();
      const answer = await this.session.open(this.path, { headers, signal: broken });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        heard();
        patience.calm();
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        this.#takeLines(lines.filter(Boolean)); // an empty line says that the gateway lives
      }
    } catch (error) {
      signal.throwIfAborted();
      throw error instanceof Refused ? error : new Away(error.message);
    } finally {
      clearTimeout(timer);
    }
  }

  #takeLines(lines) {
    // An error that ends the stream has no id. Whether the log is whole, the tune tells.
    const events = lines.map((line) => JSON.parse(line)).filter(({ id }) => id > this.#last);
    if (events.length) {
      this.#last = events.at(-1).id;
      this.take(events);
    }
  }
}
