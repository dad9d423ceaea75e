// Speaks to the gateway with one key. The key is in this tab's storage and in a header, and nowhere else.

const SLOT = "tunesmith.key";

// The gateway could not be asked, or did not answer to the end.
export class Away extends Error {}

// It answered, and not with what was asked for.
export class Refused extends Error {
  constructor(status, said, retryAfter) {
    const detail = Array.isArray(said.detail) ? said.detail.map((fault) => fault.msg).join("; ") : said.detail;
    super(detail || `The gateway answered ${status}.`);
    Object.assign(this, { status, reason: said.reason, requestId: said.request_id, retryAfter });
  }
}

// Whether the same may be answered better a little later.
export function passes(error) {
  return error instanceof Away || (error instanceof Refused && [408, 429, 500, 502, 503, 504].includes(error.status));
}

export function keptKey() {
  return sessionStorage.getItem(SLOT);
}

export class Session {
  #key;
  #ending = new AbortController();

  // `refused` is called once where the gateway does not know the key, or no longer.
  constructor(key, refused = () => {}) {
    this.#key = key;
    this.refused = refused;
  }

  // Aborted once the key is forgotten.
  get signal() {
    return this.#ending.signal;
  }

  keep() {
    sessionStorage.setItem(SLOT, this.#key);
  }

  // Forgets the key; whatever is under way is broken off.
  end() {
    sessionStorage.removeItem(SLOT);
    this.#key = "";
    this.#ending.abort();
  }

  // The JSON of an answer.
  async ask(path, { verb = "GET", body, signal } = {}) {
    const answer = await this.open(path, { verb, body, signal });
    try {
      return await answer.json();
    } catch (error) {
      throw this.#broken(error, signal);
    }
  }

  // An answer whose body is still to be read. Throws Away, Refused, or an AbortError.
  async open(path, { verb = "GET", body, signal, headers = {} } = {}) {
    const sent = { Authorization: `Bearer ${this.#key}`, ...headers };
    if (body !== undefined) sent["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, {
        method: verb,
        headers: sent,
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: "no-store",
        signal: this.#until(signal),
      });
    } catch (error) {
      throw this.#broken(error, signal);
    }
    if (answer.ok) return answer;
    // What is no JSON is a proxy's.
    const refusal = new Refused(answer.status, await answer.json().catch(() => ({})), waitOf(answer));
    if (answer.status === 401 && !this.#ending.signal.aborted) this.refused(refusal);
    throw refusal;
  }

  #until(signal) {
    return signal ? AbortSignal.any([signal, this.#ending.signal]) : this.#ending.signal;
  }

  // A network's failure, as fetch and a body's reader tell it, unless it is one of our own breaking off.
  #broken(error, signal) {
    return this.#until(signal).aborted ? new DOMException("broken off", "AbortError") : new Away(error.message);
  }
}

// Seconds, or undefined.
function waitOf(answer) {
  const said = answer.headers.get("Retry-After");
  return said !== null && /^\d+$/.test(said) ? Number(said) : undefined;
}
