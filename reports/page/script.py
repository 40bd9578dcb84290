"""The script of every report page: draws the figures, themes them, links their zoom."""

SCRIPT = r"""
(() => {
"use strict";
const page = JSON.parse(document.getElementById("orcast-figures").textContent);
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 640px)");
const coarse = matchMedia("(pointer: coarse)");
const button = document.getElementById("theme");
const config = {
  responsive: true, displaylogo: false, scrollZoom: false, displayModeBar: "hover",
  modeBarButtons: [["toImage", "resetScale2d"]],
};
let chosen = null;
try { chosen = localStorage.getItem("orcast-theme"); } catch { /* opened without storage */ }

const isDark = () => (chosen ?? (prefersDark.matches ? "dark" : "light")) === "dark";

function inTheme(value, dark) {
  if (typeof value === "string") return dark ? page.dark[value] ?? value : value;
  if (Array.isArray(value)) {
    return typeof value[0] === "number" && typeof value[1] !== "string"
      ? value : value.map(item => inTheme(item, dark));
  }
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([k, item]) => [k, inTheme(item, dark)]));
}

function styled(figure) {
  const dark = isDark();
  const drawn = figure.lanes ? lanesIn(figure) : figure;
  const data = inTheme(drawn.data, dark);
  const layout = inTheme(drawn.layout, dark);
  layout.template = page.templates[dark ? "dark" : "light"];
  layout.uirevision = "kept";
  layout.dragmode = coarse.matches ? false : "zoom";
  if (narrow.matches) {
    const {r} = layout.margin;  // a wide one holds text
    layout.margin = {...layout.margin, r: r > 16 ? r : 8};
    if (figure.group) layout.margin.l = layout.margin.l > 90 ? 82 : 54;
    const [low, high] = layout.xaxis.range;
    if (!layout.xaxis.dtick) layout.xaxis.nticks = layout.margin.l > 150 ? 3 : 6;
    else if (layout.xaxis.dtick === 1 && high - low > 14) layout.xaxis.dtick = 5;
  }
  const shown = figure.div._fullLayout?.xaxis?.range;
  if (shown && figure.layout.xaxis.range) {  // stay in the window
    layout.xaxis = {...layout.xaxis, range: [...shown], autorange: false};
  }
  figure.hidden.forEach(trace => { data[trace].visible = false; });
  return [data, layout];
}

// Requests alive in the window: which rows, from when to when. See reports/run/request_lanes.py.
function lanesOf(lanes) {
  if (lanes.ready) return lanes.ready;
  const columns = lanes.columns.map(column => Float64Array.from(column));
  let sum = 0;
  columns[0].forEach((gap, lane) => { columns[0][lane] = sum += gap; });
  let number = -1;
  const numbers = lanes.numbers.map(step => number += step);
  const starts = [columns[0]];
  for (let stretch = 1; stretch < columns.length; stretch++) {
    starts.push(columns[stretch].map((length, lane) => length + starts[stretch - 1][lane]));
  }
  lanes.ready = {lengths: columns.slice(1), starts, numbers};
  return lanes.ready;
}

function lanesIn(figure) {
  const lanes = figure.lanes, {lengths, starts, numbers} = lanesOf(lanes);
  const range = figure.div._fullLayout?.xaxis?.range ?? figure.layout.xaxis.range;
  const [low, high] = range.map(edge => edge / lanes.tick);
  const ends = starts[starts.length - 1];
  const alive = [];
  for (let lane = 0; lane < numbers.length; lane++) {
    if (starts[0][lane] < high && ends[lane] > low) alive.push(lane);
  }
  const rows = alive.length <= lanes.most ? alive : Array.from({length: lanes.most},
    (_, row) => alive[Math.floor((row + .5) * alive.length / lanes.most)]);
  const rowOf = new Map(rows.map((lane, row) => [lane, row]));
  const traces = figure.data.map(trace => ({...trace, base: [], x: [], y: [], customdata: []}));
  const add = (trace, from, length, lane) => {
    if (!(length > 0) || from >= high || from + length <= low) return;
    trace.base.push(from * lanes.tick);
    trace.x.push(length * lanes.tick);
    trace.y.push(rowOf.get(lane));
    trace.customdata.push(numbers[lane]);
  };
  for (const lane of rows) {
    lengths.forEach((lasts, stretch) => add(
      traces[stretch], starts[stretch][lane], lasts[lane], lane));
  }
  for (const [lane, out, back] of lanes.away) {
    if (rowOf.has(lane)) add(traces[traces.length - 1], out, back - out, lane);
  }
  const marks = rows.length <= 12 ? rows.map((_, row) => row)
    : [0, .2, .4, .6, .8, 1].map(share => Math.round(share * (rows.length - 1)));
  const note = document.getElementById(`${figure.name}-note`);
  const all = alive.length.toLocaleString("en-US");
  if (note) note.textContent = rows.length < alive.length
    ? `${rows.length} of the ${all} requests alive in this window are drawn; zoom in for all.`
    : `All ${all} requests${numbers.length < lanes.of ? " kept in the page and" : ""} alive in ` +
      "this window are drawn.";
  return {data: traces, layout: {...figure.layout, yaxis: {
    ...figure.layout.yaxis, range: [Math.max(rows.length, 1) - .4, -.6], tickvals: marks,
    ticktext: marks.map(row => numbers[rows[row]].toLocaleString("en-US")),
  }}};
}

const figures = page.figures.map(figure => (
  {...figure, div: document.getElementById(figure.name), hidden: new Set()}
));
const draw = figure => Plotly.react(figure.div, ...styled(figure), config);

function rangeOf(change) {
  if (change["xaxis.range"]) return change["xaxis.range"];
  if ("xaxis.range[0]" in change) return [change["xaxis.range[0]"], change["xaxis.range[1]"]];
  return change["xaxis.autorange"] ? null : undefined;
}

let following = false;
function link(figure) {
  if (!figure.group) return;
  figure.div.on("plotly_relayout", change => {
    const range = rangeOf(change);
    if (following || range === undefined) return;
    following = true;
    const to = () => range
      ? {"xaxis.range": [...range], "xaxis.autorange": false}
      : {"xaxis.autorange": true};
    Promise.all(figures
      .filter(other => other !== figure && other.group === figure.group)
      .map(other => Plotly.relayout(other.div, to()))
    ).finally(() => { following = false; });
  });
}

let awaited = 0;
function lanes(figure) {  // redraw for the window, once it has come to rest
  if (!figure.lanes) return;
  for (const [name, low, high] of figure.lanes.windows) {
    const go = document.createElement("button");
    go.type = "button";
    go.textContent = name;
    go.addEventListener("click", () => Plotly.relayout(
      figure.div, {"xaxis.range": [low, high], "xaxis.autorange": false}));
    document.getElementById(`${figure.name}-windows`).append(go);
  }
  figure.div.on("plotly_relayout", change => {
    if (rangeOf(change) === undefined) return;
    clearTimeout(awaited);
    awaited = setTimeout(() => draw(figure), 60);
  });
}

function keyboard(figure) {
  const home = figure.layout.xaxis.range ? [...figure.layout.xaxis.range] : null;
  figure.div.addEventListener("keydown", event => {
    const [low, high] = figure.div._fullLayout.xaxis.range.map(Number);
    const width = high - low, middle = (low + high) / 2;
    const around = half => [middle - half, middle + half];
    let range;
    if (event.key === "ArrowLeft") range = [low - width / 8, high - width / 8];
    else if (event.key === "ArrowRight") range = [low + width / 8, high + width / 8];
    else if (event.key === "+" || event.key === "=") range = around(width / 3);
    else if (event.key === "-") range = around(width * .75);
    else if (event.key === "0" || event.key === "Escape") range = home;
    else return;
    event.preventDefault();
    Plotly.relayout(figure.div, range
      ? {"xaxis.range": range, "xaxis.autorange": false}
      : {"xaxis.autorange": true});
  });
}

function keys(figure) {
  for (const key of document.querySelectorAll(`button.key[data-figure="${figure.name}"]`)) {
    const traces = key.dataset.traces.split(" ").map(Number);
    key.addEventListener("click", () => {
      const shown = key.getAttribute("aria-pressed") === "false";
      key.setAttribute("aria-pressed", String(shown));
      traces.forEach(trace => figure.hidden[shown ? "delete" : "add"](trace));
      Plotly.restyle(figure.div, {visible: shown}, traces);
    });
  }
}

const listeners = [];  // of widgets that draw themselves
window.orcast = {page, onTheme: told => listeners.push(told)};
function theme(redraw) {
  if (chosen) root.dataset.theme = chosen; else delete root.dataset.theme;
  if (button) button.textContent = isDark() ? "Light" : "Dark";
  if (button) button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  if (redraw) figures.forEach(draw);
  if (redraw) listeners.forEach(told => told());
}
theme(false);
button?.addEventListener("click", () => {
  chosen = isDark() ? "light" : "dark";
  try { localStorage.setItem("orcast-theme", chosen); } catch { /* kept for this visit only */ }
  theme(true);
});
prefersDark.addEventListener("change", () => theme(true));
narrow.addEventListener("change", () => figures.forEach(draw));

Promise.all(figures.map(draw)).then(() => {
  for (const figure of figures) { link(figure); lanes(figure); keyboard(figure); keys(figure); }
  root.dataset.drawn = String(figures.length);
});
})();
"""
