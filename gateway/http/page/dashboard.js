// Asks for the key, and shows what the address names: the list of tunes, or one of them.

import { told } from "./confirm.js";
import { put } from "./element.js";
import { hashOf, List, placeOf } from "./list.js";
import { Banner } from "./patience.js";
import { keptKey, Session } from "./session.js";
import { TuneView } from "./tune.js";

const at = (id) => document.getElementById(id);
const view = at("view"), entrance = at("entrance"), form = at("entry"), field = at("key"), wrong = at("wrong");
const banner = new Banner(at("banner"));

let session = null; // of the key that is in use
let list = null;
let tune = null; // the one that is shown
let note = ""; // what the next view begins with

form.addEventListener("submit", (event) => (event.preventDefault(), enter()));
at("forget").addEventListener("click", () => {
  history.replaceState(null, "", location.pathname);
  leave("");
});
addEventListener("hashchange", show);
if (keptKey()) open(keptKey());
else leave("");

async function enter() {
  const key = field.value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) return say(key ? "A key has no spaces and no letters beyond ASCII." : "Enter a key.");
  const button = form.querySelector("button");
  button.disabled = true;
  say("");
  try {
    await new Session(key).ask("v1/tunes?limit=1");
    open(key);
  } catch (error) {
    say(error.status === 401 ? "This key is not known here." : error.status ? told(error) : "The gateway does not answer; try again.");
  } finally {
    button.disabled = false;
  }
}

function say(words) {
  put(wrong, words);
  field.setAttribute("aria-invalid", String(Boolean(words)));
  if (words) field.focus();
}

function open(key) {
  session = new Session(key, () => leave("This key is not known here any more."));
  session.keep();
  field.value = "";
  entrance.hidden = true;
  at("forget").hidden = false;
  list = new List(session, banner);
  show();
}

// Forgets the key and all that it has shown.
function leave(words) {
  list?.leave();
  tune?.leave();
  session?.end();
  session = list = tune = null;
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  view.replaceChildren();
  put(at("live"), "");
  put(at("note"), "");
  document.title = "Tunesmith";
  entrance.hidden = false;
  at("forget").hidden = true;
  say(words);
  field.focus();
}

function show() {
  if (!session) return;
  const hash = location.hash.slice(1), from = tune?.id;
  list.leave();
  tune?.leave();
  tune = null;
  put(at("live"), "");
  put(at("note"), note);
  note = "";
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  if (hash.startsWith("tune_")) {
    tune = new TuneView({ session, banner, id: hash, back: hashOf(list.place), live: at("live"), left });
    view.replaceChildren(tune.node);
    tune.show();
    tune.name.focus({ preventScroll: true });
  } else {
    view.replaceChildren(list.node);
    list.show(placeOf(hash), from);
  }
}

// The tune that was shown is no more.
function left(words) {
  note = words;
  location.replace(hashOf(list.place));
}
