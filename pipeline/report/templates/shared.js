// What all pages have: charts, sorted tables, theme, printing. The script of a page follows it.
"use strict";
const numbers = JSON.parse(document.getElementById("numbers").textContent);
const element = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["circle-open", "square-open", "triangle-up-open", "x-thin-open"];
const PRINTED_PX = 680;
const view = { printing: false, drawAll: () => {} };

const fixed = (value, digits = 1) => value === null || value === undefined ? "-" : value.toFixed(digits).replace("-", "\u2212");
const shortened = (name, limit) => name.length <= limit ? name
  : `${name.slice(0, Math.ceil(limit / 2) - 1)}…${name.slice(-Math.floor(limit / 2))}`;
const textAt = (row, column) => row.cells[column].textContent;
const numberOf = (text) => text === undefined ? NaN : Number(text);

function colours() {
  const probe = document.createElement("span");
  document.body.append(probe);
  const found = {};
  for (const name of ["page", "panel", "text", "muted", "line", "ours", "second", "third", "floor"]) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}

function draw(id, traces, layout, height) {
  const box = element(id);
  if (!box) return;
  const c = colours();
  const axis = { gridcolor: c.line, zerolinecolor: c.muted, linecolor: c.muted, automargin: true, fixedrange: true };
  const { xaxis, yaxis, ...others } = layout;
  const columns = box.closest(".pair") ? 2 : 1;
  Plotly.react(box, traces, {
    height, ...(view.printing ? { width: PRINTED_PX / columns - 10 * (columns - 1) } : { width: box.clientWidth || undefined }),
    margin: { l: 50, r: 12, t: 12, b: 42 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: c.text, size: view.printing ? 10 : 13, family: getComputedStyle(document.body).fontFamily },
    hoverlabel: { bgcolor: c.panel, font: { color: c.text } }, dragmode: false,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...others,
  }, { displayModeBar: false, responsive: false });
}

function makeTable(caption, columns, rows) {
  const box = document.createElement("div"), table = document.createElement("table");
  box.className = "wide";
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", caption);
  table.createCaption().textContent = caption;
  const head = table.createTHead().insertRow();
  for (const name of columns) {
    const th = document.createElement("th");
    th.scope = "col";
    th.textContent = name;
    head.append(th);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((text, i) => {
      const cell = document.createElement(i ? "td" : "th");
      if (!i) cell.scope = "row";
      cell.textContent = text;
      line.append(cell);
    });
  }
  box.append(table);
  return box;
}

function sortBy(header) {
  const table = header.closest("table"), column = header.cellIndex;
  const isDescending = header.getAttribute("aria-sort") !== "descending";
  for (const other of all("thead th", table)) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
  const rows = all("tbody tr:not(.mean)", table), sign = isDescending ? -1 : 1;
  const key = (row) => numberOf(row.cells[column].dataset.value);
  rows.sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b) || sign * textAt(one, column).localeCompare(textAt(other, column));
    return sign * (a - b);
  });
  table.tBodies[0].prepend(...rows);
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  view.drawAll();
}

function on(id, event, act) {
  if (element(id)) element(id).addEventListener(event, act);
}

function showImages() {
  for (const image of all("img[data-frame]")) {
    const source = numbers.images[image.dataset.frame];
    if (source) { image.src = source; image.hidden = false; }
  }
}

function watchPage() {
  on("theme", "change", (event) => setTheme(event.target.value));
  for (const header of all("table.sortable thead th")) header.querySelector("button").addEventListener("click", () => sortBy(header));
  for (const button of all(".save")) button.addEventListener("click", () => {
    Plotly.downloadImage(element(button.dataset.chart), { format: "svg", filename: button.dataset.chart });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view.drawAll());
  let resizing = 0;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(() => view.printing || view.drawAll(), 150); });
  let closed = [];
  addEventListener("beforeprint", () => {
    view.printing = true;
    closed = all("details:not([open])");
    closed.forEach((box) => { box.open = true; });
    setTheme("light");
  });
  addEventListener("afterprint", () => {
    view.printing = false;
    closed.forEach((box) => { box.open = false; });
    setTheme(element("theme").value);
  });
}

async function loadPlotly() {
  const packed = Uint8Array.from(atob(element("plotly").textContent), (letter) => letter.charCodeAt(0));
  const script = document.createElement("script");
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
}

// Draws the charts once their script is unpacked, and again when the page changes; `start` sets up the page's own controls.
async function openPage(drawAll, start) {
  if (element("plotly")) await loadPlotly();
  view.drawAll = drawAll;
  start();
  watchPage();
  drawAll();
}
