"""Orcast: forecasts how an LLM serving deployment will behave before anyone pays for it.

import orcast
run = orcast.simulate("quickstart", {"engine.max_num_seqs": 64})
run.summary["p99_ttft_ms"], run.verdict, run.requests, run.figures["load"]
table, figure, summary = orcast.size(overrides={"budget.usd": 50_000})

table = orcast.sweep("quickstart", {"engine.max_num_seqs": "8..256:x2"})
orcast.sweep_figure(table, "p99_ttft_ms")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orcast.overrides import as_settings, by_path, plain
from scenarios.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from orcast.forecasted import Forecasted
    from orcast.planned import Planned
    from reports.size.notebook import SizeStudy

__version__ = "0.1.0"
__all__ = ["InputError", "plan", "simulate", "size", "sweep", "sweep_figure"]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def simulate(
    scenario: str | Path | Mapping[str, Any] = "quickstart",
    overrides: Mapping[str, Any] | None = None,
    *,
    step: bool = False,
    **sections: Any,
) -> Forecasted:
    """Forecast a scenario: a library name, a file, or a whole one as a mapping.

    `overrides` sets paths to other values, ``{"engine.max_num_seqs": 64}``; so do keywords, a key
    of the scenario each: ``simulate(model="qwen3-8b", engine={"max_num_seqs": 64})`` changes what
    it names and leaves the rest. Returns records (columns of numpy arrays, or DataFrames), figures,
    summary and resolved scenario. Raises `InputError` for a scenario that cannot be simulated.
    """
    from orcast.composed import compose
    from orcast.forecasted import Forecasted
    from scenarios.forecast.forecast import forecast
    from scenarios.schema.load import load_mapping, load_scenario

    settings = as_settings({**(overrides or {}), **by_path(sections)})
    if isinstance(scenario, Mapping):
        loaded, origin = load_mapping(scenario, settings)
    else:
        loaded, origin = load_scenario(str(scenario), settings)
    found = forecast(loaded, origin=origin, compose=compose, leap=not step)
    return Forecasted(found.deployment, found.records, found.summary)


def size(
    sizing: str | None = None, overrides: Mapping[str, Any] | None = None, *, jobs: int = 1
) -> SizeStudy:
    """Size a model by scaling laws, as `orcast size` does, with some paths set to other values.

    Returns ``(table, figure, summary)``: a tidy DataFrame with a row for each candidate model, a
    Plotly figure of training against serving cost (or the isoFLOP curves, or the memory), and all
    figures as plain data. Several `jobs` start fresh interpreters: a script that asks for them
    needs an ``if __name__ == "__main__"``. Raises `scenarios.errors.InputError` for a sizing that
    cannot be answered.
    """
    from orcast.composed import compose
    from reports.size.notebook import size_study
    from scenarios.sizing.load import load_sizing
    from scenarios.sizing.sizing import size as answer

    loaded, origin = load_sizing(sizing, as_settings(overrides))
    return size_study(answer(loaded, origin=origin, compose=compose, jobs=jobs))


def sweep(
    scenario: str,
    axes: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    jobs: int | None = None,
    ray: str | bool = False,
    out: str | Path | None = None,
) -> DataFrame:
    """Forecast a scenario at every setting of its axes; a row a run, a column a figure.

    `axes` are paths and their values, ``{"engine.max_num_seqs": "8..256:x2", "engine.block_size":
    [8, 16]}``, beside those of the scenario's own section ``sweep``; `overrides` may set
    ``sweep.seeds`` and the like. Runs on `jobs` processes (all cores), or with `ray` on a cluster
    (its address, or True for one on this machine). With a folder `out`, every answer is kept there
    and never asked for again. Raises `scenarios.errors.InputError`.
    """
    from orcast.composed import compose
    from reports.sweep.folder import check_target, write_sweep
    from reports.sweep.frame import frame_of
    from scenarios.sweep.axes import axes_from_mapping
    from scenarios.sweep.point_workers import local_workers
    from scenarios.sweep.points import load_study
    from scenarios.sweep.sweep import run_sweep

    given = {
        path: values if isinstance(values, str) else [plain(value) for value in values]
        for path, values in (axes or {}).items()
    }
    study = load_study(scenario, as_settings(overrides), axes_from_mapping(given, source="axes"))
    folder = None if out is None else Path(out)
    if folder is not None:
        check_target(folder)
    workers = local_workers(jobs)
    if ray:
        from scenarios.sweep.ray_workers import ray_workers

        workers = ray_workers(ray if isinstance(ray, str) else None)
    result = run_sweep(study, workers, folder=folder, compose=compose)
    if folder is not None:
        write_sweep(folder, result)
    return frame_of(result.table)


def sweep_figure(
    frame: DataFrame, metric: str | None = None, x: str | None = None, y: str | None = None
) -> Figure:
    """A figure of what `sweep` returned: a heat map over paths `x` and `y`, or lines along `x`.

    Without a metric it is the first one of the sweep; without paths its first two axes. Give `x`
    alone for lines. Raises ValueError for what the table does not have.
    """
    from reports.sweep.frame import figure_of_frame

    return figure_of_frame(frame, metric, x, y)


def plan(scenario: str, overrides: Mapping[str, Any] | None = None, *, jobs: int = 1) -> Planned:
    """Find the cheapest deployment for a load: `.chosen`, `.table`, `.figure`, `.answer`.

    Several `jobs` start fresh interpreters: a script that asks for them needs an
    ``if __name__ == "__main__"``. Raises `scenarios.errors.InputError` for a question that cannot
    be asked; a service level that nothing meets is an answer.
    """
    from orcast.planned import plan as planned

    return planned(scenario, overrides, jobs=jobs)
