"""The page of a forecast against a measurement, figure by figure."""

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
    Figures,
    Names,
    Scale,
    headline,
    share,
    signed,
    title,
)
from reports.compare.runs_words import said
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
        latency_section(figures, names),
        parity_section(compared, names),
        distribution_section(compared, names),
        *_load_section(compared, names),
    ]
    sections += _scenario_section(figures, names)
    return page(
        title=f"{figures['a']} and {figures['b']} · Orcast",
        top=_top(figures, names, compared.notes),
        sections=sections,
        footer=FOOTER,
    )


def _top(figures: Figures, names: Names, notes: tuple[str, ...]) -> str:
    runs = " · ".join(
        f"{name}: {label}" for name, label in zip(names, (figures["a"], figures["b"]), strict=True)
    )
    return (
        f'<header class="top"><p class="kind">Forecast against measurement</p>'
        f"<h1>{escape(title(figures))}</h1>"
        f'<p class="setting">{escape(runs)}</p>'
        f'<p class="verdict">{escape(headline(figures, names))}</p></header>'
        + warning_box(notes)
        + cards(list(_cards(figures)))
    )


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


def latency_section(figures: Figures, names: Names) -> Section:
    panels = []
    columns = (*names, "Difference")
    for metric, (short, name, _) in LOOKS.items():
        scale = Scale.of(figures, metric)
        rows = [
            [STATISTICS[statistic], *_cells(pair, scale.text)]
            for statistic, pair in figures["metrics"][metric].items()
        ]
        head = (f"{short} ({scale.unit})", *columns)
        panels.append(panel(table(head, rows, caption=name)))
    rates = [
        ["Makespan", *_cells(figures["makespan"], _seconds)],
        ["Requests/s", *_cells(figures["throughput"]["request"], plain)],
        ["Output tokens/s", *_cells(figures["throughput"]["output"], plain)],
    ]
    told = (
        f"The difference is {THE[names[0]]} less {THE[names[1]]}, in per cent of {THE[names[1]]}."
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


def _cells(pair: Mapping[str, float | None], show: Any) -> list[str]:
    return [show(pair["a"]), show(pair["b"]), signed(pair["diff_pct"])]


def _known(compared: Compared, metric: str) -> tuple[Floats, Floats, list[str]] | None:
    """Both latencies of a metric with the names of their requests; None without a single one."""
    a_s, b_s = compared.paired_s(metric)
    known = np.isfinite(a_s) & np.isfinite(b_s)
    if not known.any():
        return None
    names = [name for name, there in zip(compared.names(), known.tolist(), strict=True) if there]
    return a_s[known], b_s[known], names


def parity_section(compared: Compared, names: Names) -> Section:
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


def distribution_section(compared: Compared, names: Names) -> Section:
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


def _scenario_section(figures: Figures, names: Names) -> Iterator[Section]:
    changes = figures.get("scenario")
    if changes is None:
        return
    rows = [[path, said(pair["a"]), said(pair["b"])] for path, pair in changes.items()]
    inside = "<p>Not a single setting differs.</p>"
    if rows:  # texts of any length, which a narrow page must wrap
        inside = table(("Setting", *names), rows).replace("<table>", '<table class="facts">', 1)
    yield Section("scenario", "What differs in the scenarios", [panel(inside)], link="Scenario")
