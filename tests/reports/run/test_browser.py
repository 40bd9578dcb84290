"""The page in a real browser: drawn, quiet, offline, and answering to its reader."""

import json
import re
import subprocess
import time
from html import unescape

import numpy as np
import pytest

from reports.run.report import run_report
from tests import needs

pytestmark = needs.browser

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--hide-scrollbars", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--virtual-time-budget=20000"),
]

# Runs before anything else in the page: collects what goes wrong, and reports when told to.
WATCH = """<script>
window.problems = [];
addEventListener("error", e => problems.push("error: " + e.message));
addEventListener("unhandledrejection", e => problems.push("rejection: " + e.reason));
addEventListener("securitypolicyviolation", e => problems.push("policy: " + e.blockedURI));
for (const kind of ["error", "warn"]) {
  const say = console[kind];
  console[kind] = (...what) => { problems.push(kind + ": " + what.join(" ")); say(...what); };
}
</script>"""

# Waits for the charts, uses the page as a reader would, and says what it saw.
USE = """<script>
(async () => {
  const pause = ms => new Promise(resolve => setTimeout(resolve, ms));
  while (!document.documentElement.dataset.drawn) await pause(50);
  const $ = name => document.getElementById(name);
  const seen = {
    drawn: Number(document.documentElement.dataset.drawn),
    plots: [...document.querySelectorAll(".plot")]
      .map(plot => plot.querySelector(".trace path")?.getBBox())
      .filter(box => box && box.width + box.height > 0).length,
    width: document.documentElement.scrollWidth, room: innerWidth,
    text: document.body.innerText,
    heading: document.querySelector("h1").textContent,
    resources: performance.getEntriesByType("resource").map(entry => entry.name),
    modebars: [...document.querySelectorAll(".modebar")]
      .map(bar => getComputedStyle(bar).opacity).filter(opacity => opacity !== "0").length,
    clipped: [...document.querySelectorAll(".plot")].filter(plot => {
      const box = plot.getBoundingClientRect();
      return [...plot.querySelectorAll(".xtitle, .ytitle, .xtick, .ytick")].some(text => {
        const inside = text.getBoundingClientRect();
        return inside.left < box.left - 1 || inside.right > box.right + 1
          || inside.bottom > box.bottom + 1;
      });
    }).map(plot => plot.id),
    overlapping: [...document.querySelectorAll(".plot")].filter(plot => {
      const title = plot.querySelector(".ytitle")?.getBoundingClientRect();
      return title && [...plot.querySelectorAll(".ytick text")].some(
        tick => tick.getBoundingClientRect().left < title.right - 1);
    }).map(plot => plot.id),
    labels: [...document.querySelectorAll("#request-chart .ytick")].map(tick => tick.textContent),
  };
  if ($("throughput")) {
    const range = $("throughput")._fullLayout.xaxis.range[1];
    await Plotly.relayout($("throughput"), {"xaxis.range[0]": 0, "xaxis.range[1]": range / 4});
    await pause(300);
    seen.linked = ["load", "batches", "kv-memory", "request-lanes"]
      .map(name => $(name)._fullLayout.xaxis.range[1] / range);
    $("load").dispatchEvent(new KeyboardEvent("keydown", {key: "0"}));
    await pause(300);
    seen.reset = $("kv-memory")._fullLayout.xaxis.range[1] / range;
    const before = $("load").data[0].line.color;
    $("theme").click();
    await pause(300);
    seen.colours = [before, $("load").data[0].line.color];
    const key = document.querySelector('.key[data-figure="load"]');
    key.focus();
    key.click();
    await pause(300);
    seen.focused = document.activeElement === key;
    seen.hidden = [key.getAttribute("aria-pressed"), $("load").data[1].visible];
  }
  seen.problems = problems;
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
  parent.postMessage(result.textContent, "*");
})();
</script>"""

FRAME = """<!doctype html><body style="margin:0"><iframe src="page.html" width="390" height="800"
style="border:0"></iframe><script>addEventListener("message", e => {
const pre = document.createElement("pre"); pre.id = "seen"; pre.textContent = e.data;
document.body.append(pre); });</script></body>"""


def look_at(folder, run, *, narrow=False):
    """Open the page of `run`, 1280 or 390 pixels wide, and return what the reader saw."""
    page = run_report(run, scenario=run.scenario, summary=run.summary)
    watched = page.replace("<meta name=", WATCH + "<meta name=", 1)
    watched = watched.replace("</body></html>", USE + "</body></html>")
    (folder / "page.html").write_text(watched, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME, encoding="utf-8")
    url = (folder / ("frame.html" if narrow else "page.html")).as_uri()
    profile = folder / f"profile-{time.monotonic_ns()}"
    done = subprocess.run(
        [str(needs.CHROMIUM), *FLAGS, "--window-size=1280,900", f"--user-data-dir={profile}",
         "--dump-dom", "--enable-logging=stderr", "--v=0", url],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found is not None, f"the page never finished drawing: {console}"
    seen = json.loads(unescape(found[1]))
    assert seen["problems"] == []
    assert console == []
    assert seen["resources"] == []
    assert seen["plots"] == seen["drawn"]
    assert seen["width"] <= seen["room"], "the page scrolls sideways"
    assert seen["clipped"] == []
    assert seen["overlapping"] == []
    return seen


@pytest.mark.parametrize("narrow", [False, True], ids=["1280", "390"])
def test_report_opens_and_answers(tmp_path, make_batched_run, narrow):
    run = make_batched_run([6, 8, 4, 7, 5, 3, 6], rows=4, static=True, reserve_tokens=10)
    seen = look_at(tmp_path, run, narrow=narrow)
    assert seen["drawn"] == 10
    assert seen["room"] == (390 if narrow else 1280)
    assert seen["modebars"] == 0
    assert seen["linked"] == pytest.approx([0.25] * 4)
    assert seen["reset"] == pytest.approx(1)
    assert seen["colours"][0] != seen["colours"][1]
    assert seen["focused"]
    assert seen["hidden"] == ["false", False]


@pytest.mark.parametrize("narrow", [False, True], ids=["1280", "390"])
def test_long_request_names_leave_the_rows_readable(tmp_path, make_batched_run, narrow):
    run = make_batched_run([3] * 40, rows=3)
    run.requests["request_id"] = np.array([f"chatcmpl-{row:030d}" for row in range(40)])
    seen = look_at(tmp_path, run, narrow=narrow)
    assert seen["labels"][:3] == ["1", "3", "5"]


def test_large_report_opens(tmp_path, make_large_run):
    seen = look_at(tmp_path, make_large_run(19_366, 60_000))
    assert seen["drawn"] == 9
    assert "each point is the mean of 200 iterations" in seen["text"]


def test_scripts_in_names_are_text_in_the_browser(tmp_path, make_batched_run):
    run = make_batched_run([3, 4], rows=2)
    run.scenario["name"] = "<script>alert(1)</script>"
    run.requests["request_id"] = np.array(["<b>x</b>", "a&lt;b"])
    seen = look_at(tmp_path, run)
    assert seen["heading"] == "<script>alert(1)</script>"
    assert seen["labels"] == ["<b>x</b>", "a&lt;b"]


def test_run_without_a_single_iteration_opens(tmp_path, make_batched_run, summarize_run):
    run = make_batched_run([4, 5], rows=2)
    for name in ("scheduled_s", "first_token_s", "finished_s"):
        run.requests[name][:] = np.nan
    run.requests["rejected"][:] = True
    run.iterations = {name: column[:0] for name, column in run.iterations.items()}
    seen = look_at(tmp_path, summarize_run(run))
    assert seen["drawn"] == 0
    assert "No request completed of 2." in seen["text"]
