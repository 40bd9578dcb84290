"""The script of the live page: asks once a second what is new, draws it, sends changed limits."""

SCRIPT = r"""
(() => {
"use strict";
const root = document.documentElement;
const spec = JSON.parse(document.getElementById("live-spec").textContent);
const byId = id => document.getElementById(id);
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const SVG = "http://www.w3.org/2000/svg";
const WINDOW_S = 300;
const HEIGHT = 190, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 24;
let rows = [];
let chosen = null;
try { chosen = localStorage.getItem("orcast-theme"); } catch { /* opened without storage */ }

function theme() {
  const dark = (chosen ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  root.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = dark ? "Light" : "Dark";
}
byId("theme").addEventListener("click", () => {
  chosen = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("orcast-theme", chosen); } catch { /* not kept then */ }
  theme();
});
prefersDark.addEventListener("change", theme);
theme();

function nice(most) {
  const scale = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 2.5, 5, 10].map(one => one * scale).find(one => one >= most);
}
const short = value => value >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M`
  : value >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : `${+value.toPrecision(3)}`;

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function draw(chart) {
  const svg = byId(`chart-${chart.name}`);
  const width = Math.max(svg.clientWidth, 200);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren();
  const last = rows.length ? rows.at(-1).at_s : 0;
  const first = Math.max(0, last - WINDOW_S);
  const shown = rows.filter(row => row.at_s >= first);
  const all = shown.flatMap(row => chart.lines.map(line => row[line.key]));
  const values = all.filter(value => value !== null);
  const top = nice(Math.max(chart.least ?? 1, ...values, 1e-9));
  const x = at => LEFT + (at - first) / Math.max(last - first, 1) * (width - LEFT - RIGHT);
  const y = value => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  for (const part of [0, 0.5, 1]) {
    const at = y(top * part);
    svg.append(element("line", {x1: LEFT, x2: width - RIGHT, y1: at, y2: at, class: "grid"}));
    svg.append(element("text", {x: LEFT - 6, y: at + 4, class: "tick end"}, short(top * part)));
  }
  for (const part of [0, 0.5, 1]) {
    const at = first + (last - first) * part;
    const place = ["", "middle", "end"][part * 2];
    const text = part === 1 ? "now" : `−${Math.round(last - at)} s`;
    svg.append(element("text", {x: x(at), y: HEIGHT - 6, class: `tick ${place}`}, text));
  }
  for (const line of chart.lines) {
    let path = "", pen = "M";
    for (const row of shown) {
      const value = row[line.key];
      if (value === null) { pen = "M"; continue; }
      path += `${pen}${x(row.at_s).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    }
    svg.append(element("path", {d: path, class: `line of-${line.colour}`}));
  }
}

function cards(state) {
  const row = rows.at(-1);
  if (!row) return;
  const ms = value => value === null ? "–" : value >= 1000 ? `${(value / 1000).toFixed(2)} s`
    : `${value.toPrecision(3)} ms`;
  const said = {
    load: `${row.running} / ${row.waiting}`, tokens: `${short(row.tokens_per_s)}/s`,
    ttft: ms(row.ttft_50_ms), tpot: ms(row.tpot_50_ms),
    replicas: `${row.serving} of ${state.replicas.length}`,
    refused: `${short(row.refused_per_s)}/s`,
  };
  const within = value => `99% within ${ms(value)}`;
  const noted = {ttft: within(row.ttft_99_ms), tpot: within(row.tpot_99_ms)};
  for (const [name, text] of Object.entries(said)) byId(`card-${name}`).textContent = text;
  for (const [name, text] of Object.entries(noted)) byId(`note-${name}`).textContent = text;
  const speed = state.speed === 1 ? "" : ` · ${state.speed} times as fast as life`;
  const delay = state.delay_ms === null ? ""
    : ` · tokens leave this machine ${state.delay_ms} ms late (99%)`;
  byId("about").textContent = `${state.about.model} on ${state.about.replicas} × `
    + `${state.about.gpu} · ${state.about.latency} · tokens: ${state.about.tokens}${speed}${delay}`;
}

function replicas(state) {
  const body = byId("replicas");
  body.replaceChildren(...state.replicas.map(one => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.textContent = `replica ${one.number}`;
    row.append(head);
    for (const text of [one.state, one.running, one.waiting, `${one.kv}%`]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    row.children[1].className = {serving: "good", down: "bad"}[one.state] ?? "";
    const cell = document.createElement("td");
    if (one.state === "serving") {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "theme";
      button.textContent = "Fail for 30 s";
      const change = {fail: {replica: one.number, recover_after_s: 30}};
      button.addEventListener("click", () => send(change));
      cell.append(button);
    }
    row.append(cell);
    return row;
  }));
}

let known = "";
function fields(settings) {
  const text = JSON.stringify(settings);
  if (text === known) return;
  known = text;
  for (const name of spec.settings) byId(`set-${name}`).value = settings[name] ?? "";
}

async function send(change) {
  const headers = {"content-type": "application/json"};
  if (spec.keyed) headers.authorization = `Bearer ${byId("key").value}`;
  const note = byId("said");
  try {
    const body = JSON.stringify(change);
    const answer = await fetch("live/settings", {method: "POST", headers, body});
    const said = await answer.json();
    note.className = answer.ok ? "good" : "bad";
    note.textContent = answer.ok ? "Taken; it shows in the charts."
      : said.error.message ?? said.error;
    if (answer.ok) fields(said.settings);
  } catch (error) {
    note.className = "bad";
    note.textContent = `The server does not answer (${error.message}).`;
  }
}
byId("settings").addEventListener("submit", event => {
  event.preventDefault();
  const change = {};
  for (const name of spec.settings) {
    const text = byId(`set-${name}`).value.trim();
    change[name] = text === "" ? (spec.optional.includes(name) ? null : 0) : Number(text);
  }
  send(change);
});

async function follow() {
  try {
    const since = rows.length ? rows.at(-1).at_s : "";
    const answer = await fetch(`live/state?since=${since}`);
    const state = await answer.json();
    rows = rows.concat(state.rows).slice(-WINDOW_S - 60);
    spec.charts.forEach(draw);
    cards(state);
    replicas(state);
    fields(state.settings);
    root.dataset.lost = "";
  } catch { root.dataset.lost = "lost"; }
  setTimeout(follow, 1000);
}
addEventListener("resize", () => spec.charts.forEach(draw));
follow();
})();
"""
