"use strict";
// Show the families that contain all typed words and have the chosen stop reason.
const words = document.getElementById("words"), stop = document.getElementById("stop");
const families = [...document.querySelectorAll(".family")];
function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const family of families) {
    const { words: known, stops } = family.dataset;
    family.hidden = !wanted.every(word => known.includes(word)) || (stop.value && !stops.split("|").includes(stop.value));
    shown += !family.hidden;
  }
  document.getElementById("count").textContent = shown < families.length ? `${shown} of ${families.length} shown` : "";
}
document.getElementById("filter").oninput = filter;
document.getElementById("filter").onsubmit = event => event.preventDefault();
filter();  // a browser may restore the form's earlier content
