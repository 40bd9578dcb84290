"""`orcast sweep`: many runs of one scenario, over any of its paths."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orcast.composed import compose
from orcast.options import JsonOption, SetOption
from orcast.task_workers import RayOption, point_workers

if TYPE_CHECKING:
    from scenarios.sweep.sweep import SweepResult


def sweep(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="A scenario file, or a name from the library.")
    ],
    axis: Annotated[
        list[str] | None,
        typer.Option(
            "--axis",
            metavar="PATH=VALUES",
            help="What varies: engine.max_num_seqs=1,2,4 or 1..64:+8 or 1..256:x2; linked paths "
            "a+b=1:2,3:4. May be repeated; takes the place of the scenario's own axis.",
        ),
    ] = None,
    rate_curve: Annotated[
        bool,
        typer.Option("--rate-curve", help="Vary the load, beyond what is served; find the knee."),
    ] = False,
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder (default: sweeps/NAME).")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, metavar="N", help="Processes (default: all cores)."),
    ] = None,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate a scenario at every setting of its axes; what was simulated before is kept."""
    from reports.run.writer import folder_name
    from reports.sweep.folder import check_target, write_sweep
    from scenarios.schema.load import load_scenario
    from scenarios.sweep.axes import axis_from_text
    from scenarios.sweep.points import load_study
    from scenarios.sweep.rate_curve import rate_axis
    from scenarios.sweep.sweep import run_sweep

    started_s = time.perf_counter()
    workers = point_workers(jobs, ray)
    axes = [axis_from_text(text) for text in axis or []]
    if rate_curve:
        loaded, origin = load_scenario(scenario, set_ or [])
        axes.append(rate_axis(loaded, origin=origin, compose=compose))
    study = load_study(scenario, set_ or [], axes)
    folder = out or Path("sweeps") / folder_name(study.name)
    check_target(folder)
    try:
        with _Progress() as progress:
            result = run_sweep(
                study, workers, folder=folder, compose=compose, progress=progress.show
            )
    except KeyboardInterrupt:
        kept = f"orcast: interrupted; the same command goes on from what is in {folder}"
        print(kept, file=sys.stderr)
        sys.exit(130)
    summary = write_sweep(folder, result)
    wall_s = time.perf_counter() - started_s
    if as_json:
        for warning in result.warnings:
            print(f"orcast: warning: {warning}", file=sys.stderr)
        own = {"computed": result.computed, "reused": result.reused, "wall_s": wall_s}
        print(json.dumps(summary | own | {"sweep_folder": str(folder)}))
    else:
        _show(result, folder, wall_s)
    if summary["failed"] == summary["runs"]:
        sys.exit(1)


def _show(result: SweepResult, folder: Path, wall_s: float) -> None:
    from rich.console import Console

    from reports.sweep.terminal import sweep_table

    Console(highlight=False).print(sweep_table(result.table, result.warnings))
    before = f", {result.reused} were there before" if result.reused else ""
    rate = f" ({result.computed / wall_s:.1f} points/s)" if result.computed else ""
    print(f"{result.computed} points simulated in {wall_s:.1f} s{rate}{before}.")
    print(f"Table: {folder / 'sweep.parquet'}")
    print(f"Report: {folder / 'report.html'}")


class _Progress:
    """A bar on the terminal with points per second and time left."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, computed: int, to_compute: int, reused: int) -> None:
        """`computed` points of `to_compute` are done; `reused` needed no work."""
        if not sys.stderr.isatty() or not to_compute:
            return
        if computed and self._bar is None:  # not before the workers have been forked
            self._start(to_compute, reused)
        if self._bar is not None:
            self._bar.update(self._task, completed=computed)

    def _start(self, to_compute: int, reused: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:.1f} points/s" if task.speed else "")

        before = f" ({reused} were there)" if reused else ""
        self._bar = Progress(
            f"simulating points{before}", BarColumn(), MofNCompleteColumn(), Rate(),
            TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("points", total=to_compute)
        self._bar.start()
