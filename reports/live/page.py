"""The live page: one HTML file in the look of the what-if page, drawn by its own script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from html import escape

from reports.live.script import SCRIPT
from reports.page.page import json_block
from reports.page.style import style_sheet


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: a row's key, its words, and a colour by its name."""

    key: str
    label: str
    colour: str


@dataclass(frozen=True, slots=True)
class Chart:
    name: str
    title: str
    lines: tuple[Line, ...]
    least: float = 1.0  # the axis reaches at least as high


CHARTS = (
    Chart(
        "load",
        "Requests",
        (Line("running", "running", "running"), Line("waiting", "waiting", "waiting")),
    ),
    Chart("tokens", "Tokens per second", (Line("tokens_per_s", "output tokens", "decode"),)),
    Chart(
        "ttft",
        "Time to first token (ms)",
        (Line("ttft_50_ms", "median", "prefill"), Line("ttft_99_ms", "99th percentile", "held")),
    ),
    Chart(
        "tpot",
        "Time per output token (ms)",
        (Line("tpot_50_ms", "median", "decode"), Line("tpot_99_ms", "99th percentile", "held")),
    ),
    Chart("kv", "KV cache in use (%)", (Line("kv", "fullest replica", "used"),), 100.0),
    Chart("serving", "Replicas serving", (Line("serving", "replicas", "accent"),)),
    Chart(
        "requests",
        "Requests per second",
        (
            Line("requests_per_s", "answered", "running"),
            Line("refused_per_s", "refused", "bad"),
        ),
    ),
    Chart(
        "e2e",
        "End-to-end latency (ms)",
        (Line("e2e_50_ms", "median", "e2e"), Line("e2e_99_ms", "99th percentile", "held")),
    ),
)
_CARDS = {
    "load": "Running / waiting",
    "tokens": "Output tokens",
    "ttft": "TTFT, median",
    "tpot": "TPOT, median",
    "replicas": "Replicas serving",
    "refused": "Refused",
}
_WORDS = {
    "max_num_waiting": ("Most that wait, a replica", "beyond: 429"),
    "max_num_queued_reqs": ("Most unfinished sequences, a replica", "beyond: 503"),
    "max_queue_time_s": ("Longest wait (s)", "beyond: 503"),
    "error_rate": ("Share answered by an error", "0 to 1"),
    "drop_rate": ("Share of answers that break off", "0 to 1"),
}
_CSS = """
main.live{max-width:1400px;padding-top:20px}.bar>div{max-width:1400px}
#about{color:var(--muted);font-size:14px;margin-bottom:14px;overflow-wrap:anywhere}
.live .cards{margin-bottom:16px;grid-template-columns:repeat(auto-fill,minmax(150px,1fr))}
.live .row{grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
.live svg{width:100%;height:190px;display:block}
.grid{stroke:var(--grid)}.tick{fill:var(--muted);font-size:12px}
.tick.end{text-anchor:end}.tick.middle{text-anchor:middle}
.line{fill:none;stroke-width:2;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.controls{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:10px 16px;
 align-items:end;margin-top:8px}
.controls label{font-size:13px;display:block}.controls small{color:var(--muted);display:block}
.controls input{width:100%;font:inherit;color:inherit;background:var(--ground);
 border:1px solid var(--edge);border-radius:8px;padding:4px 8px}
.controls button{background:var(--accent);color:var(--surface);border:0;border-radius:8px;
 padding:6px 14px}
#settings{margin-top:12px}
#said{min-height:1.5em;font-size:14px;margin-top:8px}
#lost{display:none}[data-lost=lost] #lost{display:block}
"""


_COLOURS = "".join(  # by class: a style of its own on an element is not allowed
    f".line.of-{colour}{{stroke:var(--{colour})}}i.of-{colour}{{background:var(--{colour})}}"
    for colour in sorted({line.colour for chart in CHARTS for line in chart.lines})
)


def content_policy() -> str:
    """The Content-Security-Policy under which the page's own style and script run, and no other."""
    style, script = (
        f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
        for text in (_style(), SCRIPT)
    )
    return (
        f"default-src 'none'; connect-src 'self'; style-src {style}; script-src {script}; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _style() -> str:
    return style_sheet() + _CSS + _COLOURS


def live_page(name: str, *, settings: Mapping[str, tuple[float, float, bool]], keyed: bool) -> str:
    """The page of a scenario called `name`.

    settings: what can be changed: least, most, and whether there may be none. keyed: whether
    changes need the API key.
    """
    optional = [one for one, (_, _, may_be_none) in settings.items() if may_be_none]
    spec = {
        "charts": [asdict(chart) for chart in CHARTS],
        "settings": list(settings),
        "optional": optional,
        "keyed": keyed,
    }
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(name)} · live · Orcast</title>",
            f'<style>{_style()}</style><link rel="icon" href="data:,"></head><body>',
            '<div class="bar"><div><span class="brand">Orcast</span>',
            f"<nav>{escape(name)}, live</nav>",
            '<button class="theme" id="theme" type="button">Dark</button></div></div>',
            '<main class="live"><p id="about"></p>',
            '<div class="warnings" id="lost" role="alert">The server does not answer; '
            "what is shown is the last that it said.</div>",
            f'<dl class="cards">{_cards()}</dl>',
            f'<div class="row">{"".join(map(_figure, CHARTS))}</div>',
            _replicas(),
            _controls(settings, keyed=keyed),
            "<noscript>The charts need JavaScript.</noscript></main>",
            f'<script type="application/json" id="live-spec">{json_block(spec)}</script>',
            f"<script>{SCRIPT}</script></body></html>",
        )
    )


def _cards() -> str:
    return "".join(
        f'<div class="card"><dt>{escape(label)}</dt><dd class="value" id="card-{name}">–</dd>'
        f'<dd class="note" id="note-{name}"></dd></div>'
        for name, label in _CARDS.items()
    )


def _figure(chart: Chart) -> str:
    keys = "".join(
        f'<span class="key"><i class="of-{line.colour}"></i>{escape(line.label)}</span>'
        for line in chart.lines
    )
    return (
        f'<figure><h3>{escape(chart.title)}</h3><div class="keys">{keys}</div>'
        f'<svg id="chart-{chart.name}" role="img" aria-label="{escape(chart.title)}"></svg>'
        "</figure>"
    )


def _replicas() -> str:
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Replica", "", "Running", "Waiting", "KV", "")
    )
    return (
        f'<div class="panel" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        '<tbody id="replicas"></tbody></table></div>'
    )


def _controls(settings: Sequence[str] | Mapping[str, object], *, keyed: bool) -> str:
    fields = "".join(
        f"<label>{escape(_WORDS[name][0])} <small>{escape(_WORDS[name][1])}</small>"
        f'<input id="set-{name}" inputmode="decimal" autocomplete="off"></label>'
        for name in settings
    )
    key = (
        "<label>API key <small>needed for changes</small>"
        '<input id="key" type="password" autocomplete="off"></label>'
        if keyed
        else ""
    )
    return (
        '<form class="panel" id="settings"><h3>Limits and faults</h3>'
        f'<div class="controls">{fields}{key}<button>Change</button></div>'
        '<p id="said" role="status"></p></form>'
    )
