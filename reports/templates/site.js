"use strict";

// Tables that sort by a click on a heading or the Enter key; empty cells stay last in both directions, and rows with the
// same value in the order of the page: those that share a rank, and those that have none.
for (const table of document.querySelectorAll("table.sortable")) {
  if (table.closest(".board")) continue; // board.js
  const rows = [...table.tBodies[0].rows];
  const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  headings.forEach((heading, index) => {
    heading.querySelector("button").addEventListener("click", () => {
      const current = heading.getAttribute("aria-sort");
      const ascending = current ? current !== "ascending" : heading.dataset.first !== "desc";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortRows(table.tBodies[0], rows, index, ascending, heading.dataset.kind === "text");
    });
  });
}

function sortRows(body, rows, index, ascending, isText) {
  const keyed = rows.map((row) => ({ row, key: row.cells[index].dataset.sort }));
  keyed.sort((a, b) => {
    if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "");
    const order = isText ? a.key.localeCompare(b.key, undefined, { numeric: true }) : Number(a.key) - Number(b.key);
    return ascending ? order : -order;
  });
  body.append(...keyed.map(({ row }) => row));
}

// The matrices: one measure is shown at a time.
for (const box of document.querySelectorAll(".switched")) {
  const buttons = [...box.querySelectorAll(".switch button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const measure = button.dataset.measure;
      press(buttons, button);
      box.querySelectorAll(".matrix").forEach((m) => { m.hidden = m.dataset.measure !== measure; });
      box.querySelector(".ramp").hidden = measure !== "auroc" && measure !== "control";
    });
  }
}

function press(buttons, pressed) {
  buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === pressed)));
}

// A button that takes one of several curves in and out.
function toggle(chip, shown, key, draw) {
  const mark = () => chip.setAttribute("aria-pressed", String(shown.has(key)));
  mark();
  chip.addEventListener("click", () => {
    if (!shown.delete(key)) shown.add(key);
    mark();
    draw();
  });
}

// A choice shows one of several tables.
for (const box of document.querySelectorAll(".picked")) {
  const choice = box.querySelector("select[data-pick]");
  const show = () => box.querySelectorAll("[data-choice]").forEach((t) => { t.hidden = t.dataset.choice !== choice.value; });
  choice.addEventListener("change", show);
  show(); // a browser may keep the choice over a reload
}

// Plotly reads a little HTML in every text; a name must stay a name.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%\{/g, "%\u200b{");
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function fade(hex, alpha) {
  const n = parseInt(hex.slice(1), 16);
  return `rgba(${n >> 16},${(n >> 8) & 255},${n & 255},${alpha})`;
}

// What all plots have in common, before their axes and traces.
function plotLook(width, height, margin, dragmode) {
  const font = { family: css("--font"), size: 12 };
  return {
    width, height, margin, dragmode, showlegend: false, hovermode: "closest",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", annotations: [], shapes: [],
    font: { ...font, color: css("--muted") },
    hoverlabel: { bgcolor: css("--paper"), bordercolor: css("--rule"), font: { ...font, color: css("--ink") } },
  };
}

// On paper a plot is drawn again at the width of the page, and afterwards as before. Browsers lay a page out for the
// printer only after they have asked its scripts.
function onPaper(plot, draw) {
  const PAPER = 700;
  addEventListener("beforeprint", () => { plot.style.width = `${PAPER}px`; draw(); });
  addEventListener("afterprint", () => { plot.style.width = ""; draw(); });
}
