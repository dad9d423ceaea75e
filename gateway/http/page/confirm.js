// Asks before something is done that cannot be undone, and tells what became of it.

import { element, put } from "./element.js";

// `act` is awaited; where it fails, the dialog stays and says why. Resolves to whether it was done.
export function confirmed({ title, words, verb, keep, act }) {
  const failure = element("p", { class: "callout bad", role: "alert", hidden: "" });
  const stay = element("button", { type: "button", autofocus: "" }, keep);
  const go = element("button", { type: "button", class: "danger" }, verb);
  const dialog = element("dialog", { "aria-labelledby": "asked" },
    element("h2", { id: "asked" }, title), element("p", {}, words), failure,
    element("div", { class: "buttons" }, stay, go));
  document.body.append(dialog);
  return new Promise((resolve) => {
    let done = false;
    stay.addEventListener("click", () => dialog.close());
    go.addEventListener("click", async () => {
      go.disabled = true;
      failure.hidden = true;
      try {
        await act();
        done = true;
        dialog.close();
      } catch (error) {
        put(failure, told(error));
        failure.hidden = false;
        go.disabled = false;
        go.focus();
      }
    });
    dialog.addEventListener("close", () => (dialog.remove(), resolve(done)));
    dialog.showModal();
  });
}

// An error in words, with what an operator finds it by.
export function told(error) {
  const words = error.status ? error.message : "The gateway does not answer. What was asked may have been done or not.";
  return error.requestId ? `${words} (request ${error.requestId})` : words;
}
