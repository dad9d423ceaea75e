// Asks again where the gateway is away, and says so. What was shown stays.

import { put } from "./element.js";
import { Away, passes } from "./session.js";

const FIRST = 0.3; // seconds; a connection that broke off by itself is there again before anyone needs to know
const LONGEST = 15; // seconds

// Resolves after so many seconds, when the signal is aborted, or when `wake` is called, also if that was before.
export class Pause {
  #over = () => {};
  #woken = false;

  wake() {
    this.#woken = true;
    this.#over();
  }

  async take(seconds, signal) {
    if (!this.#woken && !signal.aborted) await this.#sleep(seconds, signal);
    this.#woken = false;
  }

  async #sleep(seconds, signal) {
    let timer;
    await new Promise((over) => {
      this.#over = over;
      timer = setTimeout(over, seconds * 1000);
      signal.addEventListener("abort", over);
    });
    clearTimeout(timer);
    signal.removeEventListener("abort", this.#over);
  }
}

// The bar that says what is waited for, of all that wait.
export class Banner {
  #waiting = new Map(); // who waits -> {words, until, pause}
  #clock = 0;

  constructor(node) {
    this.node = node;
    [this.words, this.seconds, this.button] = node.querySelectorAll("[data-words], [data-seconds], button");
    this.button.addEventListener("click", () => this.#waiting.forEach(({ pause }) => pause.wake()));
  }

  add(who, words, seconds, pause) {
    this.#waiting.set(who, { words, until: Date.now() + seconds * 1000, pause });
    this.#show();
  }

  // It asks, and does not know yet: the words stay.
  remove(who) {
    if (this.#waiting.delete(who)) this.#show();
  }

  #show() {
    clearTimeout(this.#clock);
    const [first] = this.#waiting.values();
    this.node.hidden = !first;
    if (!first) return;
    put(this.words, first.words);
    const left = Math.max(Math.ceil((first.until - Date.now()) / 1000), 0);
    put(this.seconds, left ? `Trying again in ${left} s.` : "Trying again …");
    this.#clock = setTimeout(() => this.#show(), 250);
  }
}

export class Patience {
  #failures = 0;
  #pause = new Pause();

  constructor(banner, signal) {
    Object.assign(this, { banner, signal });
    signal.addEventListener("abort", () => banner.remove(this), { once: true });
  }

  // What `work` answers, as soon as it does; throws what waiting does not mend.
  async through(work) {
    for (;;) {
      try {
        const answer = await work();
        this.calm();
        return answer;
      } catch (error) {
        if (!passes(error)) throw error;
        await this.#wait(error);
        this.signal.throwIfAborted();
      }
    }
  }

  // The gateway answers.
  calm() {
    this.#failures = 0;
    this.banner.remove(this);
  }

  async #wait(error) {
    this.#failures += 1;
    const silent = this.#failures === 1 && error instanceof Away;
    const growing = Math.min(2 ** (this.#failures - 2), LONGEST) * (0.8 + 0.4 * Math.random());
    const seconds = silent ? FIRST : Math.max(growing, error.retryAfter ?? 0);
    if (!silent) this.banner.add(this, sentence(error), seconds, this.#pause);
    await this.#pause.take(seconds, this.signal);
  }
}

function sentence(error) {
  if (error.status === 429) return error.message;
  return "The gateway does not answer.";
}
