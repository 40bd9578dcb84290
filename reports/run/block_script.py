"""The script of the block tables: a slider over iterations, and two canvases."""

SCRIPT = r"""
(() => {
"use strict";
const box = document.getElementById("block-tables");
if (!box) return;
const data = orcast.page.widgets["block-tables"];
const size = data.block_size, engines = data.starts.length;
let engine = 0, at = 0, cells = [];
const make = (tag, attributes = {}, ...inside) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
};

// What each table holds, and how full it is, by table.
const holds = data.tables.map(() => []), fills = data.tables.map(() => []);
for (const [table, position, block, first, last] of data.holds) {
  holds[table].push({position, block, first, last});
}
for (const [table, first, last, used, reserved, growing] of data.fills) {
  fills[table].push({first, last, used, reserved, growing});
}
const nameOf = table => {
  const [, request, sample] = data.tables[table];
  return (data.names[request] ?? request) + (sample ? `, sample ${sample}` : "");
};
const fixed = (value, digits = 4) => Number(value.toPrecision(digits)).toLocaleString("en-US");

const slider = make("input", {
  type: "range", min: 0, max: 0, value: 0, step: 1, "aria-label": "Iteration",
});
const before = make("button", {type: "button", "aria-label": "Iteration before"}, "‹");
const after = make("button", {type: "button", "aria-label": "Next iteration"}, "›");
const controls = make("div", {class: "moment"}, before, slider, after);
if (engines > 1) {
  const choice = make("select", {"aria-label": "Replica"});
  for (let number = 0; number < engines; number++) {
    choice.append(make("option", {value: number}, data.replicas[number] ?? `replica ${number}`));
  }
  choice.addEventListener("change", () => { engine = Number(choice.value); choose(); });
  controls.prepend(choice);
}
const said = make("p", {class: "said", "aria-live": "polite"});
const tables = make("canvas", {"aria-label": "Block tables", role: "img"});
const pool = make("canvas", {"aria-label": "All blocks of the pool", role: "img"});
const pointed = make("p", {class: "pointed"}, "\u00a0");
const text = make("pre");
const words = make("details", {}, make("summary", {}, "These tables in words"), text);
const frame = make("div", {class: "canvases"}, tables, pool);
box.append(controls, said, frame, pointed, words);

const colours = () => {
  const style = getComputedStyle(document.documentElement);
  return name => style.getPropertyValue(`--${name}`).trim();
};

// Every table at this iteration: blocks in order, slots by kind.
function moment() {
  const found = [];
  data.tables.forEach(([of], table) => {
    if (of !== engine) return;
    const blocks = holds[table].filter(one => one.first <= at && at < one.last)
      .sort((a, b) => a.position - b.position).map(one => one.block);
    if (!blocks.length) return;
    const fill = fills[table].find(one => one.first <= at && at < one.last);
    const passed = fill.growing * (at - fill.first);
    found.push({
      table, blocks, used: fill.used + passed, reserved: Math.max(fill.reserved - passed, 0),
    });
  });
  return found;
}

function canvas(element, height) {
  const width = Math.max(frame.clientWidth, 10), ratio = devicePixelRatio || 1;
  element.width = width * ratio;
  element.height = height * ratio;
  element.style.height = `${height}px`;
  const pen = element.getContext("2d");
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, width, height);
  return [pen, width];
}

function fillBlock(pen, ink, x, y, w, h, used, reserved) {
  pen.fillStyle = ink("fragmentation");
  pen.fillRect(x, y, w, h);
  pen.fillStyle = ink("reserved");
  pen.fillRect(x, y, w * (used + reserved) / size, h);
  pen.fillStyle = ink("used");
  pen.fillRect(x, y, w * used / size, h);
}

function drawTables(now, references) {
  const ink = colours(), row = 20, font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const ruler = tables.getContext("2d");
  ruler.font = font;
  const longest = Math.max(0, ...now.map(one => ruler.measureText(nameOf(one.table)).width));
  const label = Math.min(longest + 12, frame.clientWidth * .3);
  const most = Math.max(1, ...now.map(one => one.blocks.length));
  const room = frame.clientWidth - label - 2;
  const each = Math.max(3, Math.min(44, room / most));
  const columns = Math.max(1, Math.floor(room / each));
  const lines = now.map(one => Math.ceil(one.blocks.length / columns));
  const total = lines.reduce((sum, count) => sum + count, 0);
  const [pen] = canvas(tables, Math.max(total, 1) * row + 4);
  pen.font = font;
  pen.textBaseline = "middle";
  cells = [];
  let line = 0;
  now.forEach((one, number) => {
    pen.fillStyle = ink("ink");
    pen.textAlign = "left";
    let name = nameOf(one.table);
    while (name.length > 4 && pen.measureText(name).width > label - 8) {
      name = name.slice(0, -2) + "…";
    }
    pen.fillText(name, 0, line * row + row / 2);
    one.blocks.forEach((block, position) => {
      const x = label + (position % columns) * each;
      const y = (line + Math.floor(position / columns)) * row + 2;
      const used = Math.min(Math.max(one.used - position * size, 0), size);
      const reserved = Math.min(
        Math.max(one.used + one.reserved - position * size - used, 0), size - used);
      const gap = each > 8 ? 2 : each > 4 ? 1 : .5;
      fillBlock(pen, ink, x, y, each - gap, row - 4, used, reserved);
      const shared = references.get(block);
      if (shared > 1) {
        pen.strokeStyle = ink("ink");
        pen.lineWidth = each > 8 ? 2 : 1;
        pen.strokeRect(x + .5, y + .5, each - gap - 1, row - 5);
      }
      if (each >= 34) {
        pen.fillStyle = used || reserved ? "#101418" : "#ffffff";
        pen.textAlign = "left";
        pen.fillText(block, x + 4, y + (row - 4) / 2 + .5);
      }
      cells.push({x, y, w: each, h: row, says: `block ${block}: block ${position + 1} of request ` +
        `${nameOf(one.table)}, ${used} of ${size} slots used` +
        (reserved ? `, ${reserved} reserved` : "") +
        (size - used - reserved ? `, ${size - used - reserved} lost` : "") +
        (shared > 1 ? `; in ${shared} tables` : "")});
    });
    line += lines[number];
  });
  if (!now.length) {
    pen.fillStyle = ink("muted");
    pen.fillText("No request holds a block.", 0, row / 2);
  }
}

let poolCells = [];
function drawPool(now, references) {
  const ink = colours(), shown = data.touched;
  const width = frame.clientWidth, each = shown > 1200 ? 9 : shown > 400 ? 12 : 16;
  const columns = Math.max(1, Math.floor(width / each));
  const top = 22;
  const [pen] = canvas(pool, top + Math.ceil(shown / columns) * each + 4);
  const state = new Map();
  for (const one of now) {
    one.blocks.forEach((block, position) => {
      const used = Math.min(Math.max(one.used - position * size, 0), size);
      const reserved = Math.min(
        Math.max(one.used + one.reserved - position * size - used, 0), size - used);
      state.set(block, {used, reserved});
    });
  }
  const idle = new Set(data.idle.filter(([of, , first, last]) =>
    of === engine && first <= at && at < last).map(span => span[1]));
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  pen.fillStyle = ink("muted");
  pen.textBaseline = "top";
  pen.fillText(shown < data.num_blocks
    ? `Blocks 0 to ${shown - 1} of the pool's ${data.num_blocks.toLocaleString("en-US")}`
    : `All ${shown.toLocaleString("en-US")} blocks of the pool`, 0, 4);
  poolCells = [];
  for (let block = 0; block < shown; block++) {
    const x = (block % columns) * each, y = top + Math.floor(block / columns) * each;
    const held = state.get(block);
    if (held) fillBlock(pen, ink, x, y, each - 1.5, each - 1.5, held.used, held.reserved);
    else {
      pen.fillStyle = ink("free");
      pen.fillRect(x, y, each - 1.5, each - 1.5);
      if (idle.has(block)) {
        pen.fillStyle = ink("held");
        pen.fillRect(x + each / 2 - 2, y + each / 2 - 2, 3, 3);
      }
    }
    if (references.get(block) > 1) {
      pen.strokeStyle = ink("ink");
      pen.lineWidth = 1.5;
      pen.strokeRect(x + .5, y + .5, each - 2.5, each - 2.5);
    }
    poolCells.push({x, y, w: each, h: each, says: `block ${block}: ` + (held
      ? `held by ${references.get(block)} table${references.get(block) > 1 ? "s" : ""}`
      : idle.has(block) ? "free, its content kept for the prefix cache" : "free")});
  }
  return idle.size;
}

function draw() {
  const now = moment(), references = new Map();
  for (const one of now) {
    for (const block of one.blocks) references.set(block, (references.get(block) ?? 0) + 1);
  }
  drawTables(now, references);
  const idle = drawPool(now, references);
  const entries = now.reduce((sum, one) => sum + one.blocks.length, 0);
  const shared = (entries - references.size) * size;
  const used = now.reduce((sum, one) => sum + one.used, 0) - shared;
  const reserved = now.reduce((sum, one) => sum + one.reserved, 0);
  const slots = references.size * size, lost = slots - used - reserved;
  const share = part => slots ? `${fixed(100 * part / slots, 3)} %` : "none";
  said.textContent = `Iteration ${(at + 1).toLocaleString("en-US")} of ` +
    `${data.starts[engine].length.toLocaleString("en-US")}, ` +
    `from ${fixed(data.starts[engine][at], 5)} s: ` +
    `${now.length} table${now.length === 1 ? "" : "s"} hold ` +
    `${references.size.toLocaleString("en-US")} of ${data.num_blocks.toLocaleString("en-US")} ` +
    `blocks; of their slots ${share(used)} are used, ${share(reserved)} reserved, ` +
    `${share(lost)} lost to fragmentation.` +
    (shared ? ` Sharing saves ${entries - references.size} blocks.` : "") +
    (idle ? ` ${idle} free blocks are kept for the prefix cache.` : "");
  slider.setAttribute("aria-valuetext", said.textContent);
  if (words.open) {
    text.textContent = now.map(one =>
      `request ${nameOf(one.table)}: ${one.used} tokens in blocks ${one.blocks.join(" ")}`
    ).join("\n") || "No request holds a block.";
  }
}

function choose() {
  slider.max = data.starts[engine].length - 1;
  at = Math.min(at, Number(slider.max));
  slider.value = at;
  draw();
}
const move = to => {
  at = Math.min(Math.max(to, 0), Number(slider.max));
  slider.value = at;
  draw();
};
slider.addEventListener("input", () => move(Number(slider.value)));
before.addEventListener("click", () => move(at - 1));
after.addEventListener("click", () => move(at + 1));
words.addEventListener("toggle", draw);
for (const [element, list] of [[tables, () => cells], [pool, () => poolCells]]) {
  element.addEventListener("pointermove", event => {
    const area = element.getBoundingClientRect();
    const x = event.clientX - area.left, y = event.clientY - area.top;
    const cell = list().find(one =>
      one.x <= x && x < one.x + one.w && one.y <= y && y < one.y + one.h);
    pointed.textContent = cell?.says ?? "\u00a0";
  });
}
orcast.onTheme(draw);
new ResizeObserver(() => draw()).observe(frame);

// Open where the pool is fullest.
engine = 0;
let fullest = -1;
const steps = data.starts[0].map(() => 0);
for (const [table, , , first, last] of data.holds) {
  if (data.tables[table][0] !== 0) continue;
  steps[first] += 1;
  if (last < steps.length) steps[last] -= 1;
}
steps.reduce((held, change, step) => {
  if (held + change > fullest) { fullest = held + change; at = step; }
  return held + change;
}, 0);
choose();
document.documentElement.dataset.tables = "drawn";
})();
"""
