"""The result of a sweep on the terminal: the best settings, and which axis matters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.sweep.report import headline
from reports.sweep.words import Measure, axis_label, varying
from scenarios.sweep.axes import level_text
from scenarios.sweep.statistics import Interval, intervals, sensitivity
from scenarios.sweep.table import SweepTable, better

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderResult
    from rich.table import Table

MOST_ROWS = 8
WIDEST_LEVEL = 28  # letters of a setting's value on one line


def sweep_table(sweep: SweepTable, warnings: Iterable[str]) -> Group:
    """Lay out a sweep for `rich`: its best settings by the first figure, sensitivities, warnings.

    Text from outside is shown without markup.
    """
    from rich.console import Group
    from rich.text import Text

    parts = [_Settings.of(sweep), _shares(sweep)]
    lines = [Text(headline(sweep), style="bold")]
    lines += [Text(f"warning: {warning}", style="yellow") for warning in warnings]
    return Group(*(part for part in parts if part is not None), *lines)


@dataclass(frozen=True, slots=True)
class _Settings:
    """The best settings, with as many of the figures as the terminal has room for.

    A setting's own values are never cut: two settings would look the same.
    """

    sweep: SweepTable
    shown: dict[str, list[Interval | None]]

    @classmethod
    def of(cls, sweep: SweepTable) -> _Settings | None:
        shown = {metric: intervals(sweep, metric) for metric in sweep.metrics}
        shown = {metric: found for metric, found in shown.items() if any(found)}
        return cls(sweep, shown) if shown else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        metrics = list(self.shown)
        while len(metrics) > 1 and not _fits(self.grid(metrics), console, options):
            metrics.pop()
        yield self.grid(metrics)
        left_out = [Measure.of(metric, ()).name for metric in list(self.shown)[len(metrics) :]]
        if left_out:
            yield Text(f"No room here for {', '.join(left_out)}: see the report.\n", style="dim")

    def grid(self, metrics: list[str]) -> Table:
        from rich.box import SIMPLE
        from rich.table import Table
        from rich.text import Text

        sweep, shown, ranked = self.sweep, self.shown, self._ranked()
        title = f"{sweep.name}: {sweep.num_settings} settings, {sweep.num_runs} runs"
        title += f"; the best {MOST_ROWS}" if len(ranked) > MOST_ROWS else ""
        grid = Table(title=title, title_justify="left", box=SIMPLE)
        for axis in varying(sweep):
            head = Text(_folded(axis_label(sweep, axis)))
            grid.add_column(head, justify="right", overflow="fold", max_width=WIDEST_LEVEL)
        measures = {m: Measure.of(m, [one.mean for one in shown[m] if one]) for m in metrics}
        for measure in measures.values():
            name = measure.name.replace(" throughput", "")
            head = Text(f"{name}\n{measure.unit}" if measure.unit else name)
            grid.add_column(head, justify="right")
        for setting in ranked[:MOST_ROWS]:
            grid.add_row(
                *(Text(level_text(sweep.level(axis, setting))) for axis in varying(sweep)),
                *(Text(measures[m].mean(shown[m][setting], unit=False)) for m in metrics),
            )
        return grid

    def _ranked(self) -> list[int]:
        """The settings that have the first figure, the best first."""
        metric, found = next(iter(self.shown.items()))
        sign = better(metric) or 1
        means = {setting: one.mean for setting, one in enumerate(found) if one is not None}
        return sorted(means, key=lambda setting: -sign * means[setting])


def _fits(grid: Table, console: Console, options: ConsoleOptions) -> bool:
    from rich.measure import Measurement

    wide = options.update(width=10_000)
    return Measurement.get(console, wide, grid).maximum <= options.max_width


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
    together = "together only" if sweep.sampling == "cartesian" else "together, and the rest"
    grid.add_row(together, *(f"{100 * part.interaction:.1f}" for part in parts))
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
