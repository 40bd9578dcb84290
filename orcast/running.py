"""A loaded scenario, run and written, with its progress on the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orcast.composed import compose

if TYPE_CHECKING:
    from scenarios.schema.scenario import Scenario


def run_loaded(
    loaded: Scenario,
    origin: Path,
    *,
    out: Path | None = None,
    as_json: bool = False,
    quiet: bool = False,
    leap: bool = True,
    check: bool = False,
) -> None:
    """Simulate it; print the result and write a run folder with its report."""
    from reports.run.writer import folder_name, fresh_folder, write_run
    from scenarios.forecast.forecast import forecast
    from scenarios.forecast.run_details import run_details

    folder = out or Path("runs") / folder_name(loaded.name)
    with fresh_folder(folder) as partial, RunProgress() as progress:
        result = forecast(
            loaded,
            origin=origin,
            compose=compose,
            leap=leap,
            check=check,
            progress=None if quiet else progress.show,
        )
        write_run(
            partial,
            result.records,
            scenario=result.scenario,
            summary=result.summary,
            details=run_details(result, origin=origin),
        )
    if as_json:
        for warning in result.summary["warnings"]:
            print(f"orcast: warning: {warning}", file=sys.stderr)
        print(json.dumps(result.summary | {"run_folder": str(folder)}))
        return
    if quiet:
        return
    from rich.console import Console

    from reports.run.terminal import summary_table

    Console(highlight=False).print(summary_table(result.summary))
    print(f"Report: {folder / 'report.html'}")


class RunProgress:
    """A progress bar on the terminal, for runs that take longer than a second."""

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self._bar: object | None = None
        self._update: Callable[[int, int], None] | None = None

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()  # type: ignore[attr-defined]

    def show(self, ended: int, total: int) -> None:
        """`ended` of `total` requests are done."""
        if self._update is not None:
            self._update(ended, total)
        elif sys.stderr.isatty() and time.perf_counter() - self._started_s > 1.0:
            self._start(total)

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        bar = Progress(
            "simulating requests", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        task = bar.add_task("requests", total=total)
        bar.start()
        self._bar = bar
        self._update = lambda ended, _: bar.update(task, completed=ended)
