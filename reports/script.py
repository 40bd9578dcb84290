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
    return typeof value[0] === "number" ? value : value.map(item => inTheme(item, dark));
  }
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([k, item]) => [k, inTheme(item, dark)]));
}

function styled(figure) {
  const dark = isDark();
  const data = inTheme(figure.data, dark);
  const layout = inTheme(figure.layout, dark);
  layout.template = page.templates[dark ? "dark" : "light"];
  layout.uirevision = "kept";
  layout.dragmode = coarse.matches ? false : "zoom";
  if (narrow.matches) {
    layout.margin = {...layout.margin, r: 8};
    if (figure.group) layout.margin.l = 54;
    const [low, high] = layout.xaxis.range;
    if (!layout.xaxis.dtick) layout.xaxis.nticks = 6;
    else if (layout.xaxis.dtick === 1 && high - low > 14) layout.xaxis.dtick = 5;
  }
  figure.hidden.forEach(trace => { data[trace].visible = false; });
  return [data, layout];
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

function theme(redraw) {
  if (chosen) root.dataset.theme = chosen; else delete root.dataset.theme;
  if (button) button.textContent = isDark() ? "Light" : "Dark";
  if (button) button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  if (redraw) figures.forEach(draw);
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
  for (const figure of figures) { link(figure); keyboard(figure); keys(figure); }
  root.dataset.drawn = String(figures.length);
});
})();
"""
