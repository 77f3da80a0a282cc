"use strict";
// Reload the page while the run goes on, say if there is no news, and scrub through the previews.
const state = document.getElementById("state").dataset;
const scrub = document.getElementById("scrub");
const kept = "diffuse-scrub-" + location.pathname;
if (Number(state.reload)) {
  const age = (Date.now() - Date.parse(document.lastModified)) / 1000;
  if (age > Number(state.late)) {
    const line = document.createElement("p");
    line.className = "warns";
    const words = document.createElement("strong");
    words.textContent = "No news for " + Math.round(age / 60) + " minutes: the run may have stopped.";
    line.append(words);
    document.getElementById("state").after(line);
  }
  setTimeout(() => location.reload(), 1000 * Number(state.reload));
}
if (scrub) {
  const shown = [...document.querySelectorAll(".strip figure")];
  const show = () => shown.forEach((one, k) => one.classList.toggle("earlier", k !== Number(scrub.value)));
  try {
    const before = sessionStorage.getItem(kept);
    if (before !== null && Number(before) < shown.length - 1) scrub.value = before;
  } catch { /* a browser may keep nothing for a file */ }
  scrub.addEventListener("input", () => {
    show();
    try { sessionStorage.setItem(kept, scrub.value); } catch { /* as above */ }
  });
  show();
}
