"""Run a sweep: answer the points that have no answer yet, and put all of them in one table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios.errors import InputError, did_you_mean
from scenarios.forecast.forecast import forecast
from scenarios.forecast.latency_source import Composer
from scenarios.schema.workload import Arrivals, LengthPair, Lengths, Workload
from scenarios.sweep.point_answer import Task, flat
from scenarios.sweep.point_key import point_key
from scenarios.sweep.point_store import PointStore
from scenarios.sweep.point_workers import Workers
from scenarios.sweep.points import Point, Study
from scenarios.sweep.table import SweepTable, columns_of

Progress = Callable[[int, int, int], None]  # answered just now, of how many, answered before
SATURATED = (  # each with its own figures, which is one thing to know of a sweep
    "saturated: asked for more than the deployment serves; waiting times say how long the run was"
)
MOST_PROBES = 20


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A sweep's table, how many of its points were run and how many had been before, its notes."""

    study: Study
    table: SweepTable
    computed: int
    reused: int
    warnings: tuple[str, ...]


def run_sweep(
    study: Study,
    workers: Workers,
    *,
    folder: Path | None = None,
    compose: Composer | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Answer every point of `study` once and for all.

    Answers are kept under `folder`, a file each, as they come: a sweep that was killed goes on
    where it was, and what has been answered for another sweep is not asked again. A point that
    fails has its error in the table. The table depends on nothing but the study: not on the
    workers, their number, or on how often the sweep was begun. Raises InputError, before anything
    runs, for metrics that no run has.
    """
    metrics = tuple(study.section.metrics) or _default_metrics(study)
    if study.section.metrics:
        _check_metrics(study, compose)
    store = None if folder is None else PointStore(folder)
    beside = study.origin.parent
    keys = [
        "" if point.scenario is None else point_key(point.scenario, beside=beside)
        for point in study.points
    ]
    answers: dict[str, dict[str, Any]] = {}
    tasks: dict[str, Task] = {}
    for point, key in zip(study.points, keys, strict=True):
        if point.scenario is None or key in answers or key in tasks:
            continue
        known = None if store is None else store.read(key)
        if known is None:
            tasks[key] = Task(key, point.scenario, study.origin, compose)
        else:
            answers[key] = known
    reused = len(answers)
    if progress is not None:
        progress(0, len(tasks), reused)
    with closing(workers(list(tasks.values()))) as answered:  # type: ignore[type-var]
        for task, text in answered:
            answer = answers[task.key] = json.loads(text)
            if store is not None and not answer.get("passing"):
                store.write(task.key, text)
            if progress is not None:
                progress(len(answers) - reused, len(tasks), reused)
    rows = [_row(point, key, answers) for point, key in zip(study.points, keys, strict=True)]
    paths = [path for axis in study.axes for path in axis.paths]
    table = SweepTable(
        name=study.name,
        description=study.description,
        axes=tuple(axis.paths for axis in study.axes),
        sampling=study.section.sampling,
        confidence=study.section.confidence,
        metrics=metrics,
        columns=columns_of(rows, ["setting", *paths, "seed", "point", "error"]),
    )
    notes = _notes(table, (answers[key] for key in keys if key))
    if store is not None and store.damaged:
        notes += (f"{store.damaged} kept answers were damaged and have been computed again",)
    return SweepResult(study, table, len(tasks), reused, notes)


def _row(point: Point, key: str, answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = {"setting": point.setting, **point.values, "seed": point.seed, "point": key}
    if point.scenario is None:
        return row | {"error": point.refusal}
    answer = answers[key]
    return row | {"error": answer.get("error"), **answer.get("metrics", {})}


def resolved(study: Study, metrics: Iterable[str]) -> dict[str, Any]:
    """The study as a scenario again, defaults included, with its axes written out."""
    section = study.section.model_dump(mode="json", exclude_none=True)
    section["axes"] = {
        axis.name: [level[0] if len(level) == 1 else list(level) for level in axis.levels]
        if axis.span is None or axis.span.is_listed
        else f"{axis.span.low}..{axis.span.high}{':log' * axis.span.logarithmic}"
        for axis in study.axes
    }
    section |= {"seeds": list(study.seeds), "metrics": list(metrics)}
    return study.scenario.model_dump(mode="json") | {"sweep": section}


def _notes(table: SweepTable, answers: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """What a reader has to be told: the runs' own warnings, the most frequent first."""
    said = Counter(
        SATURATED if text.startswith("Saturated: ") else text
        for answer in answers
        for text in answer.get("warnings", ())
    )
    notes = []
    if table.errors:
        (cause, _), others = Counter(table.errors).most_common(1)[0], len(set(table.errors)) - 1
        more = f" (and {others} other reasons)" if others else ""
        failed = f"{len(table.errors)} of {table.num_runs} runs failed"
        notes.append(f"{failed} and have no figures: {cause}{more}")
    most = said.most_common(5)
    notes += [
        text if number == table.num_runs else f"{number} of {table.num_runs} runs: {text}"
        for text, number in most
    ]
    if len(said) > len(most):
        notes.append(f"{len(said) - len(most)} more warnings are beside the runs they are about")
    if _seeds_are_idle(table):
        notes.append("nothing is drawn at random here: the seeds make no difference")
    return tuple(notes)


def _seeds_are_idle(table: SweepTable) -> bool:
    runs = [values for values in table.by_setting("duration") if None not in values]
    return any(len(values) > 1 for values in runs) and all(len(set(run)) == 1 for run in runs)


# -- metrics --------------------------------------------------------------------------------------


def _default_metrics(study: Study) -> tuple[str, ...]:
    slo = study.scenario.slo
    asked = any(limit is not None for limit in (slo.ttft_ms, slo.tpot_ms, slo.e2el_ms))
    shown = ("output_throughput", "p99_ttft_ms", "p99_tpot_ms")
    return ("request_goodput", *shown) if asked else shown


def _check_metrics(study: Study, compose: Composer | None) -> None:
    """InputError for a metric that is no figure of a run: a run of one request says which are."""
    request = Lengths(distribution="fixed", tokens=1)
    smallest = Workload(
        arrivals=Arrivals(process="all_at_once"),
        lengths=LengthPair(prompt=request, output=request),
        num_requests=1,
    )
    candidates = [point.scenario for point in study.points if point.scenario is not None]
    for scenario in candidates[:: max(1, len(candidates) // MOST_PROBES)]:
        try:
            tiny = scenario.model_copy(update={"workload": smallest})
            run = forecast(tiny, origin=study.origin, compose=compose)
        except Exception:  # noqa: S112 - this point will say so itself
            continue
        names = [name for name, value in flat(run.summary)]
        for metric in study.section.metrics:
            if metric not in names:
                raise InputError(
                    f"{study.origin}: sweep.metrics: {metric!r} is no figure of a run; "
                    f"{did_you_mean(metric, names)}"
                )
        return
