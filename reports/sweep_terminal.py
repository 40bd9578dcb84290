"""The result of a sweep on the terminal: the best settings, and which axis matters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from reports.sweep_report import headline
from reports.sweep_words import Measure, axis_label, level_label, varying
from scenarios.sweep_statistics import intervals, sensitivity
from scenarios.sweep_table import SweepTable, better

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

MOST_ROWS = 8


def sweep_table(sweep: SweepTable, warnings: Iterable[str]) -> Group:
    """Lay out a sweep for `rich`: its best settings by the first figure, sensitivities, warnings.

    Text from outside is shown without markup.
    """
    from rich.console import Group
    from rich.text import Text

    parts = [_settings(sweep), _shares(sweep)]
    lines = [Text(headline(sweep), style="bold")]
    lines += [Text(f"warning: {warning}", style="yellow") for warning in warnings]
    return Group(*(part for part in parts if part is not None), *lines)


def _settings(sweep: SweepTable) -> Table | None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    shown = {metric: intervals(sweep, metric) for metric in sweep.metrics}
    shown = {metric: found for metric, found in shown.items() if any(found)}
    if not shown:
        return None
    measures = {m: Measure.of(m, [one.mean for one in found if one]) for m, found in shown.items()}
    first = next(iter(shown))
    sign = better(first) or 1
    ranked = [setting for setting, one in enumerate(shown[first]) if one is not None]
    ranked.sort(key=lambda setting: -sign * (shown[first][setting].mean))  # type: ignore[union-attr]
    many = len(ranked) > MOST_ROWS
    title = f"{sweep.name}: {sweep.num_settings} settings, {sweep.num_runs} runs"
    title += f"; the best {MOST_ROWS}" if many else ""
    grid = Table(title=title, title_justify="left", box=SIMPLE)
    for axis in varying(sweep):
        grid.add_column(Text(_folded(axis_label(sweep, axis))), justify="right")
    for measure in measures.values():
        name = measure.name.replace(" throughput", "")
        head = f"{name}\n{measure.unit}" if measure.unit else name
        grid.add_column(Text(head), justify="right")
    for setting in ranked[:MOST_ROWS]:
        grid.add_row(
            *(Text(level_label(sweep.level(axis, setting))) for axis in varying(sweep)),
            *(Text(measures[m].mean(shown[m][setting], unit=False)) for m in shown),
        )
    return grid


def _shares(sweep: SweepTable) -> Table | None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    parts = [part for metric in sweep.metrics if (part := sensitivity(sweep, metric)) is not None]
    if not parts:
        return None
    title = "% of the variance that each axis explains"
    grid = Table(title=title, title_justify="left", box=SIMPLE)
    grid.add_column("")
    for part in parts:
        grid.add_column(Text(Measure.of(part.metric, ()).name), justify="right")
    for axis in varying(sweep):
        shares = (part.effects[axis].share for part in parts)
        grid.add_row(Text(axis_label(sweep, axis)), *(f"{100 * share:.1f}" for share in shares))
    grid.add_row("together only", *(f"{100 * part.interaction:.1f}" for part in parts))
    if len(set(sweep.columns["seed"])) > 1:
        grid.add_row("seeds", *(f"{100 * part.noise:.1f}" for part in parts))
    return grid


def _folded(label: str) -> str:
    """A long label on two lines, so that a column is as narrow as what is in it."""
    breaks = [at for at, letter in enumerate(label) if letter in "_ "]
    if len(label) <= 8 or not breaks:
        return label
    middle = min(breaks, key=lambda at: abs(at - len(label) / 2))
    return f"{label[: middle + 1]}\n{label[middle + 1 :]}"
