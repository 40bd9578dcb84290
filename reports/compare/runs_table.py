"""Runs of one kind on the terminal: a column a run, the best of every row bold and marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.compare.figures import LOOKS
from reports.compare.runs_words import (
    Beside,
    Line,
    headline,
    latency_lines,
    request_lines,
    settings_rows,
    shortened,
    title,
    whole_lines,
)
from scenarios.quantity import count, printable

if TYPE_CHECKING:
    from rich.console import Group

BEST = "*"  # also where a terminal has no bold


def runs_table(beside: Beside) -> Group:
    """Lay out what `orcast compare --json` prints of runs, for `rich.print`; without markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    names = beside["names"]
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("")
    for at, name in enumerate(names):
        table.add_column("measured" if _measured(beside, at) else name, justify="right")
    settings = settings_rows(beside)
    for path, values in settings:
        table.add_row(Text(printable(path)), *(Text(printable(shortened(v))) for v in values))
    if settings:
        table.add_row()
    groups = [whole_lines(beside), *(latency_lines(beside, metric) for metric in LOOKS)]
    groups.append(request_lines(beside))
    for group in groups:
        for line in group:
            if any(value != "–" for value in line.values):
                table.add_row(line.label, *(_cell(line, at) for at in range(len(names))))
        table.add_row()
    labels = [
        Text(f"{name}: {printable(label)}")
        for name, label in zip(names, beside["runs"], strict=True)
    ]
    notes = [Text(_legend(beside), style="dim")]
    notes += [Text(printable(f"note: {note}"), style="yellow") for note in beside["notes"]]
    top = [*labels, Text(title(beside), style="bold"), Text(headline(beside)), Text("")]
    return Group(*top, table, *notes)


def _cell(line: Line, at: int) -> str:
    change = f" ({line.changes[at]})" if line.changes[at] else ""
    text = f"{line.values[at]}{change}"
    return f"[bold]{text}{BEST}[/bold]" if at in line.best else text


def _measured(beside: Beside, at: int) -> bool:
    return bool(beside["base_is_measured"]) and at == beside["base"]


def _legend(beside: Beside) -> str:
    """What the table counts, and from where."""
    base = "what was measured" if beside["base_is_measured"] else beside["names"][0]
    best = "the closest" if beside["base_is_measured"] else "the best"
    requests = beside["requests"]
    if beside["same_requests"]:
        over = f"the {count(requests[0])} requests that completed in every run"
    else:
        over = "each run's own requests"
    return f"{BEST} {best} of its row; changes are from {base}; latencies over {over}."
