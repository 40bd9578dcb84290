"""The page of a comparison, figure by figure: how far a forecast is from a measurement, or what
changes from one forecast to another."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reports.compare.figures import (
    LOOKS,
    Side,
    counted,
    load_figures,
    overlaid_cdf,
    parity,
    side_names,
)
from reports.compare.headline import (
    STATISTICS,
    THE,
    TWO,
    Figures,
    Names,
    Scale,
    headline,
    outcomes,
    share,
    signed,
    title,
)
from reports.export.target import check_file
from reports.page.page import Card, Row, Section, cards, escape, page, panel, table, warning_box
from reports.page.records import Floats
from reports.run.folder import FILES
from reports.run.report import FOOTER
from scenarios.quantity import GAP, MISSING, count, plain
from scenarios.whole import write_whole


class Compared(Protocol):
    """Two runs of the same requests."""

    @property
    def a(self) -> Side: ...
    @property
    def b(self) -> Side: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def paired_s(self, metric: str) -> tuple[Floats, Floats]: ...
    def names(self) -> list[str]: ...
    def as_dict(self) -> dict[str, Any]: ...


def is_run_folder(path: Path) -> bool:
    """Whether `path` is what `orcast run` writes, whole or not."""
    return path.is_dir() and any((path / name).is_file() for name in FILES)


def page_target(out: Path | None, a: Path) -> Path | None:
    """Where the page goes: `out`, else compare.html in run folder `a`, else nowhere.

    Raises ValueError, before anything is computed, where `out` cannot be written, or holds
    something else than a page of Orcast's.
    """
    if out is None:
        if not (is_run_folder(a) and os.access(a, os.W_OK)):
            return None
        out = a / "compare.html"
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"--out {out}: cannot be written")
    check_file(out, "page")
    return out


def write_compare_report(path: Path, compared: Compared) -> None:
    """Write the page, whole or not at all. Raises OSError where `path` cannot be written."""
    write_whole(path, compare_report(compared))


def compare_report(compared: Compared) -> str:
    """Build the page: HTML that needs nothing but a browser."""
    figures = compared.as_dict()
    names = side_names(compared.a, compared.b)
    sections = [
        _latency_section(figures, names),
        _parity_section(compared, names),
        _distribution_section(compared, names),
        *_load_section(compared, names),
    ]
    settings = list(_scenario_section(figures))
    sections = [*settings, *sections] if names == TWO else [*sections, *settings]
    return page(
        title=f"{figures['a']} and {figures['b']} · Orcast",
        top=_top(figures, names, compared.notes),
        sections=sections,
        footer=FOOTER,
    )


def _top(figures: Figures, names: Names, notes: tuple[str, ...]) -> str:
    kind = "Comparison of two runs" if names == TWO else "Forecast against measurement"
    prefix = ("A: ", "B: ")
    runs = " · ".join(
        f"{mark}{label}" if names == TWO else f"{name}: {label}"
        for mark, name, label in zip(prefix, names, (figures["a"], figures["b"]), strict=True)
    )
    return (
        f'<header class="top"><p class="kind">{escape(kind)}</p>'
        f"<h1>{escape(title(figures, names))}</h1>"
        f'<p class="setting">{escape(runs)}</p>'
        f'<p class="verdict">{escape(headline(figures, names))}</p></header>'
        + warning_box(notes)
        + cards(list(_changes(figures) if names == TWO else _cards(figures)))
    )


def _changes(figures: Figures) -> Iterator[Card]:
    """What becomes of each figure from B to A."""
    for metric, (short, _, _) in LOOKS.items():
        scale, pair = Scale.of(figures, metric), figures["metrics"][metric]["mean"]
        note = f"{scale.text(pair['b'])} → {scale.text(pair['a'])}{GAP}{scale.unit}"
        yield Card(f"Mean {short}", signed(pair["diff_pct"]), note)
    output = figures["throughput"]["output"]
    note = f"{plain(output['b'])} → {plain(output['a'])} tokens/s"
    yield Card("Output throughput", signed(output["diff_pct"]), note)
    for label, b, a, change in outcomes(figures):
        yield Card(label, change, f"{b} → {a}")


def _cards(figures: Figures) -> Iterator[Card]:
    own = figures["per_request"]
    for metric, (short, _, _) in LOOKS.items():
        bias = f"bias {signed(own['e2e_bias_pct'])}" if metric == "e2e" else ""
        note = bias or "mean absolute error"
        yield Card(f"{short}, per request", share(own[f"{metric}_mape_pct"]), note)
    span, output = figures["makespan"], figures["throughput"]["output"]
    yield Card("Makespan", signed(span["diff_pct"]), _both(span, _seconds))
    yield Card("Output throughput", signed(output["diff_pct"]), _both(output, plain, "tokens/s"))


def _both(pair: Mapping[str, float | None], show: Any, unit: str = "") -> str:
    return f"{show(pair['a'])} against {show(pair['b'])}" + (f" {unit}" if unit else "")


def _seconds(value_s: float | None) -> str:
    """Seconds even where they are many, so that two makespans compare."""
    return MISSING if value_s is None else f"{plain(value_s, 4)}{GAP}s"


def _latency_section(figures: Figures, names: Names) -> Section:
    panels = []
    columns = ("B", "A", "Change") if names == TWO else (*names, "Difference")
    for metric, (short, name, _) in LOOKS.items():
        scale = Scale.of(figures, metric)
        rows = [
            [STATISTICS[statistic], *_cells(pair, scale.text, names)]
            for statistic, pair in figures["metrics"][metric].items()
        ]
        head = (f"{short} ({scale.unit})", *columns)
        panels.append(panel(table(head, rows, caption=name)))
    rates = [
        ["Makespan", *_cells(figures["makespan"], _seconds, names)],
        ["Requests/s", *_cells(figures["throughput"]["request"], plain, names)],
        ["Output tokens/s", *_cells(figures["throughput"]["output"], plain, names)],
    ]
    rates += [list(row) for row in outcomes(figures)] if names == TWO else []
    told = (
        "The change is from B to A, in per cent of B, or in points of a share."
        if names == TWO
        else f"The difference is {THE[names[0]]} less {THE[names[1]]}, in per cent of "
        f"{THE[names[1]]}."
    )
    return Section(
        "figures",
        "Figures side by side",
        [
            f'<div class="row">{"".join(panels)}</div>',
            panel(table(("Whole run", *columns), rates)),
        ],
        f"Over the {count(figures['requests'])} requests that completed in both. {told} TTFT and "
        "E2E count from the arrival at the engine.",
        link="Figures",
    )


def _cells(pair: Mapping[str, float | None], show: Any, names: Names) -> list[str]:
    order = "ba" if names == TWO else "ab"
    return [*(show(pair[side]) for side in order), signed(pair["diff_pct"])]


def _known(compared: Compared, metric: str) -> tuple[Floats, Floats, list[str]] | None:
    """Both latencies of a metric with the names of their requests; None without a single one."""
    a_s, b_s = compared.paired_s(metric)
    known = np.isfinite(a_s) & np.isfinite(b_s)
    if not known.any():
        return None
    names = [name for name, there in zip(compared.names(), known.tolist(), strict=True) if there]
    return a_s[known], b_s[known], names


def _parity_section(compared: Compared, names: Names) -> Section:
    figures = [
        parity(metric, known[0], known[1], names, labels=known[2])
        for metric in LOOKS
        if (known := _known(compared, metric)) is not None
    ]
    return Section(
        "parity",
        "Request by request",
        [Row(tuple(figures))],
        f"A point is a request. On the line both are equal, above it {THE[names[0]]} is slower.",
        link="Requests",
    )


def _distribution_section(compared: Compared, names: Names) -> Section:
    figures = [
        overlaid_cdf(metric, known[0], known[1], names)
        for metric in LOOKS
        if (known := _known(compared, metric)) is not None
    ]
    return Section("distributions", "Distributions", [Row(tuple(figures))])


def _load_section(compared: Compared, names: Names) -> Iterator[Section]:
    figures = list(load_figures(compared.a, compared.b, names))
    if not figures:
        return
    told = ("from the requests' own times", "as the engine counted it at intervals")
    sources = [told[counted(side)] for side in (compared.a, compared.b)]
    intro = f"{names[0]}: {sources[0]}. {names[1]}: {sources[1]}."
    if sources[0] == sources[1]:
        intro = f"Both {sources[0]}."
    yield Section("load", "Running and waiting over time", figures, intro, link="Load")


def _scenario_section(figures: Figures) -> Iterator[Section]:
    changes = figures.get("scenario")
    if changes is None:
        return
    rows = [[path, _words(pair["b"]), _words(pair["a"])] for path, pair in changes.items()]
    inside = "<p>Not a single setting differs.</p>"
    if rows:  # texts of any length, which a narrow page must wrap
        inside = table(("Setting", "B", "A"), rows).replace("<table>", '<table class="facts">', 1)
    yield Section("scenario", "What differs in the scenarios", [panel(inside)], link="Scenario")


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return MISSING if value is None else str(value)
