// Follows what happens: when the gate says that something has changed, the page is fetched anew and its main part put in
// place of the old one. What a person is doing there (a field in use, details that are open) is left as it is.
"use strict";

const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("tidegate", { createHTML: (text) => text })
  : { createHTML: (text) => text };

function busy(main) {
  const at = document.activeElement;
  return main.contains(at) && ["INPUT", "SELECT", "TEXTAREA", "BUTTON"].includes(at.tagName);
}

async function refresh() {
  const main = document.getElementById("main");
  if (document.hidden || busy(main)) return false;
  const answer = await fetch(location.href, { credentials: "same-origin" });
  if (answer.redirected) {
    location.reload();
    return true;
  }
  if (!answer.ok) return false;
  const fresh = new DOMParser()
    .parseFromString(policy.createHTML(await answer.text()), "text/html")
    .getElementById("main");
  if (!fresh || busy(main)) return false;
  const open = [...main.querySelectorAll("details")].map((each) => each.open);
  [...fresh.querySelectorAll("details")].forEach((each, at) => { each.open = open[at] || each.open; });
  main.replaceChildren(...fresh.childNodes);
  return true;
}

function follow() {
  const events = new EventSource("/live");
  let waiting = false;
  let first = true;
  events.addEventListener("changed", () => {
    waiting = !first;
    first = false;
  });
  events.addEventListener("over", () => {
    events.close();
    location.reload();
  });
  setInterval(async () => {
    if (waiting) waiting = !(await refresh().catch(() => false));
  }, 1000);
}

if (document.querySelector("main[data-follows]")) follow();
