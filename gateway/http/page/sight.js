// Whether anybody looks at this tab. A browser has six connections for all its tabs of one server, as long as that speaks
// HTTP/1.1: a tab that nobody sees must not hold one of them open.

const GRACE = 10; // seconds out of sight; who looks elsewhere for a moment breaks nothing off

// What `work` answers. It is given a signal, and is begun anew when the tab is seen again after that was aborted.
export async function whileSeen(work, signal) {
  for (;;) {
    await seen(signal);
    const unseen = new AbortController();
    let timer;
    const look = () => {
      clearTimeout(timer);
      if (document.hidden) timer = setTimeout(() => unseen.abort(), GRACE * 1000);
    };
    document.addEventListener("visibilitychange", look);
    try {
      return await work(AbortSignal.any([signal, unseen.signal]));
    } catch (error) {
      if (signal.aborted || !unseen.signal.aborted) throw error;
    } finally {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", look);
    }
  }
}

async function seen(signal) {
  while (document.hidden) {
    signal.throwIfAborted();
    await new Promise((over) => {
      document.addEventListener("visibilitychange", over, { once: true });
      signal.addEventListener("abort", over, { once: true });
    });
  }
}
