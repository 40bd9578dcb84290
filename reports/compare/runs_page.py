"""The page of two or more runs of one kind: what differs, what comes of it, what is best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reports.compare.figures import LOOKS, Side, parity
from reports.compare.runs_figures import OVERLAID, distributions, loads, outcomes
from reports.compare.runs_words import (
    Beside,
    Line,
    headline,
    latency_lines,
    request_lines,
    settings_rows,
    title,
    whole_lines,
)
from reports.page.page import (
    Card,
    Figure,
    Row,
    Section,
    cards,
    escape,
    page,
    panel,
    table,
    warning_box,
)
from reports.page.records import Floats
from reports.run.report import FOOTER
from scenarios.quantity import MISSING, count
from scenarios.whole import write_whole


class Runs(Protocol):
    """Runs side by side."""

    @property
    def runs(self) -> Sequence[Side]: ...
    @property
    def base(self) -> int: ...
    @property
    def same_requests(self) -> bool: ...
    def latency_s(self, metric: str, run: int) -> Floats: ...
    def as_dict(self) -> dict[str, Any]: ...


def write_runs_page(path: Path, runs: Runs) -> None:
    """Write the page, whole or not at all. Raises OSError where `path` cannot be written."""
    write_whole(path, runs_page(runs))


def runs_page(runs: Runs) -> str:
    """Build the page: HTML that needs nothing but a browser."""
    beside = runs.as_dict()
    return page(
        title=f"{count(len(beside['names']))} runs · Orcast",
        top=_top(beside),
        sections=list(_sections(runs, beside)),
        footer=FOOTER,
    )


def _top(beside: Beside) -> str:
    labels = " · ".join(
        f"{name}: {label}" for name, label in zip(beside["names"], beside["runs"], strict=True)
    )
    return (
        '<header class="top"><p class="kind">Runs side by side</p>'
        f"<h1>{escape(title(beside))}</h1>"
        f'<p class="setting">{escape(labels)}</p>'
        f'<p class="verdict">{escape(headline(beside))}</p></header>'
        + warning_box(beside["notes"])
        + cards(list(_cards(beside)))
    )


def _cards(beside: Beside) -> Iterator[Card]:
    """The best of each figure; of two runs, what becomes of it."""
    two = len(beside["names"]) == 2
    means = [latency_lines(beside, metric)[0] for metric in LOOKS]
    for line in [*whole_lines(beside)[:4], *means]:
        known = [value for value in line.values if value != MISSING]
        if len(known) < 2:
            continue
        if two:
            yield Card(line.label, line.changes[1], f"{line.values[0]} → {line.values[1]}")
        elif line.best:
            names = [beside["names"][at] for at in line.best]
            others = ", ".join(
                f"{name} {value}"
                for at, (name, value) in enumerate(zip(beside["names"], line.values, strict=True))
                if at not in line.best
            )
            yield Card(line.label, f"{', '.join(names)}: {line.values[line.best[0]]}", others)


def _sections(runs: Runs, beside: Beside) -> Iterator[Section]:
    names = beside["names"]
    yield from _differences(beside)
    yield _figures(beside)
    charts = [*outcomes(beside)]
    if charts:
        rows = [Row(tuple(charts[at : at + 3])) for at in range(0, len(charts), 3)]
        yield Section("outcomes", "What becomes of the runs", rows, _BEST, link="Outcomes")
    latencies = {
        metric: [runs.latency_s(metric, run) for run in range(len(names))] for metric in LOOKS
    }
    curves = distributions(names, latencies)
    if curves:
        rows = [Row(tuple(curves[at : at + 3])) for at in range(0, len(curves), 3)]
        yield Section("distributions", "Distributions", rows)
    if runs.same_requests and len(names) <= OVERLAID:
        points = [*_requests(runs, names)]
        told = "A point is a request. On the line both are equal, above it the later run is slower."
        if points:
            rows = [Row(tuple(points[at : at + 3])) for at in range(0, len(points), 3)]
            yield Section("parity", "Request by request", rows, told, link="Requests")
    over_time = [*loads(names, runs.runs)]
    if over_time:
        rows = [Row(tuple(over_time[at : at + 2])) for at in range(0, len(over_time), 2)]
        told = "Every chart has the same scales."
        yield Section("load", "Running and waiting over time", rows, told, link="Load")


_BEST = "Green is the best of each; figures that are the same everywhere are left out."


def _differences(beside: Beside) -> Iterator[Section]:
    if beside.get("scenario") is None:
        return
    rows = [[path, *values] for path, values in settings_rows(beside)]
    inside = "<p>Not a single setting differs.</p>"
    if rows:  # texts of any length, which a narrow page must wrap
        inside = table(("Setting", *beside["names"]), rows)
        inside = inside.replace("<table>", '<table class="dense">', 1)
    yield Section("scenario", "What differs in the scenarios", [panel(inside)], link="Scenario")


def _figures(beside: Beside) -> Section:
    """All figures, the best of each row marked."""
    measured = beside["base_is_measured"]
    base = "what was measured" if measured else beside["names"][0]
    head = [
        "Measured" if measured and at == beside["base"] else name
        for at, name in enumerate(beside["names"])
    ]
    panels = []
    groups = [("Whole run", whole_lines(beside))]
    groups += [(title, latency_lines(beside, metric)) for metric, (_, title, _) in LOOKS.items()]
    groups.append(("Request by request", request_lines(beside)))
    for caption, lines in groups:
        known = [line for line in lines if any(v != MISSING for v in line.values)]
        best = {(row, at + 1) for row, line in enumerate(known) for at in line.best}
        if known:
            rows = [_row(line) for line in known]
            panels.append(panel(table(["", *head], rows, caption=caption, best=best)))
    told = "the closest to it" if measured else "the best"
    over = (
        f"Latencies are over the {count(beside['requests'][0])} requests that completed in every "
        "run"
        if beside["same_requests"]
        else "Latencies are over each run's own requests"
    )
    intro = f"{over}. Changes are from {base}; ★ is {told} of its row."
    return Section("figures", "Figures side by side", panels, intro, link="Figures")


def _row(line: Line) -> list[str]:
    cells = [line.label]
    for at, (value, change) in enumerate(zip(line.values, line.changes, strict=True)):
        cells.append(value + (f" ({change})" if change else "") + " ★" * (at in line.best))
    return cells


def _requests(runs: Runs, names: Sequence[str]) -> Iterator[Figure]:
    """The same requests in the base and in each other run: of two all latencies, of more E2E."""
    base = runs.base
    for run in range(len(names)):
        for metric in LOOKS if len(names) == 2 else ("e2e",):
            base_s, other_s = runs.latency_s(metric, base), runs.latency_s(metric, run)
            known = np.isfinite(base_s) & np.isfinite(other_s)
            if run == base or not known.any():
                continue
            labels = [str(at) for at in np.flatnonzero(known).tolist()]
            pair = (names[run], names[base])
            figure = parity(metric, other_s[known], base_s[known], pair, labels=labels)
            if len(names) > 2:
                figure = Figure(
                    f"{figure.name}-{names[run]}",
                    f"{figure.title} · {names[run]}",
                    figure.caption,
                    figure.data,
                    figure.layout,
                    figure.keys,
                )
            yield figure
