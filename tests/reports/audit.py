"""What an automated audit of a page finds: contrast, names, structure, overflow, by WCAG 2.2 AA."""

from __future__ import annotations

import json
import time

from tests.reports.browser import Browser

WIDTHS = (1280, 390)
THEMES = ("light", "dark")
# 1.4.3: text has 4.5 times the luminance of what is behind it; large text 3 times.
CONTRAST, LARGE_CONTRAST = 4.5, 3.0

_AUDIT = """(() => {
  const problems = [];
  const shown = (e) => e.checkVisibility({opacityProperty: true, visibilityProperty: true});
  const parse = (text) => {
    const [r, g, b, a = 1] = (text.match(/[\\d.]+/g) || []).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length > 3 && colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => {
      const s = c / 255;
      return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const say = (e) => `${e.tagName.toLowerCase()}.${e.getAttribute("class") || e.id}`;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  while (walker.nextNode()) {
    const text = walker.currentNode, element = text.parentElement;
    if (!text.data.trim() || seen.has(element)) continue;
    seen.add(element);
    const inChart = element.closest("svg");
    // What lies upon a chart's own marks is looked at by the tests of the palette.
    if (inChart && !element.closest(".xtick, .ytick, .g-xtitle, .g-ytitle")) continue;
    if (/^(script|style|noscript|option)$/i.test(element.tagName) || !shown(element)) continue;
    if (element.closest(":disabled, [aria-hidden=true]")) continue;
    const style = getComputedStyle(element);
    const ground = behind(inChart ? inChart.parentElement : element);
    const ink = over(parse(inChart ? style.fill : style.color), ground);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const found = ratio(ink, ground);
    const words = text.data.trim().slice(0, 30);
    if (found < (large ? LARGE : NORMAL) - 0.005)
      problems.push(`contrast ${found.toFixed(2)}: ${say(element)} "${words}"`);
  }
  const named = (e) => (e.getAttribute("aria-label") || e.innerText || e.title || e.alt
    || [...(e.labels || [])].map((label) => label.innerText).join("")
    || (e.getAttribute("aria-labelledby") || "").split(" ")
      .map((id) => document.getElementById(id)?.innerText || "").join("")).trim();
  for (const e of document.querySelectorAll(
    "a[href], button, input, select, textarea, summary, [role=img], [role=button], nav, img"))
    if (shown(e) && !e.closest("svg") && !e.closest(".modebar") && !named(e)
        && !(e.tagName === "IMG" && e.alt === ""))
      problems.push(`no name: ${say(e)}`);
  const ids = [...document.querySelectorAll("body [id]")].filter((e) => !e.closest("svg"))
    .map((e) => e.id);
  for (const id of new Set(ids.filter((id, at) => ids.indexOf(id) !== at)))
    problems.push(`id twice: ${id}`);
  for (const attribute of ["aria-labelledby", "aria-controls", "aria-describedby", "for"])
    for (const e of document.querySelectorAll(`[${attribute}]`))
      if (!e.getAttribute(attribute).split(" ").some((id) => document.getElementById(id)))
        problems.push(`${attribute} names nothing: ${e.getAttribute(attribute)}`);
  let before = 0;
  for (const e of document.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const level = Number(e.tagName[1]);
    if (level > before + 1) problems.push(`heading skips a level: ${say(e)} "${e.innerText}"`);
    before = level;
  }
  if (document.querySelectorAll("h1").length !== 1) problems.push("not one h1");
  if (document.querySelectorAll("main").length !== 1) problems.push("not one main");
  if (!document.documentElement.lang) problems.push("no language");
  if (!document.title.trim()) problems.push("no title");
  if (!document.querySelector("meta[name=viewport]")) problems.push("no viewport");
  for (const e of document.querySelectorAll("[tabindex]"))
    if (e.tabIndex > 0) problems.push(`tabindex above 0: ${say(e)}`);
  if (document.documentElement.scrollWidth > innerWidth)
    problems.push(`${document.documentElement.scrollWidth} px wide in ${innerWidth}`);
  return [...new Set(problems)];
})()""".replace("LARGE", str(LARGE_CONTRAST)).replace("NORMAL", str(CONTRAST))


def audit(browser: Browser, *, within_s: float = 20.0) -> list[str]:
    """Problems of the page that is open, as it is shown: what is still there once it is drawn."""
    end_s = time.monotonic() + within_s
    while (found := browser.run(_AUDIT)) and time.monotonic() < end_s:
        time.sleep(0.2)  # charts take their new colours one after the other
    problems: list[str] = found
    return problems


def show(browser: Browser, *, width: int, theme: str, height: int = 2400) -> None:
    """The page at this width, for a reader who prefers this theme."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.call("Emulation.setEmulatedMedia", features=features)
    browser.resize(width, height)
    browser.wait_for(f"matchMedia('(prefers-color-scheme: {theme})').matches")
    # The what-if page looks at that once, and then has a button.
    other = f"![undefined, '{theme}'].includes(document.documentElement.dataset.theme)"
    browser.run(f"{other} && document.querySelector('.bar .theme').click()")
    browser.wait_for(f"!({other})")
    wide = json.dumps(width)
    browser.wait_for(f"innerWidth === {wide} && document.documentElement.scrollWidth <= {wide}")
