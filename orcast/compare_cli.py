"""`orcast compare`: a forecast against a measurement, or runs of one kind side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orcast.options import JsonOption
from scenarios.errors import InputError, reading

if TYPE_CHECKING:
    from rich.console import RenderableType

    from calibrate.recordings.measurement import Measurement

Settings = Mapping[str, Any]


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B [C]...",
            help="Run folders, or what was measured: a recording's folder or requests.jsonl, a "
            "result of vLLM's or SGLang's client, AIPerf, GuideLLM or inference-perf; of "
            "aggregates alone, only they are compared.",
        ),
    ],
    as_json: JsonOption = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="HTML page (default: A/compare.html)."),
    ] = None,
) -> None:
    """Hold forecast A against measurement B, or lay two or more runs side by side.

    Changes read forwards, from A to B. Several forecasts and one measurement: which is closest.
    """
    from calibrate.recordings.aggregate_comparison import compare_aggregates
    from calibrate.recordings.client_records import aggregates_in
    from calibrate.recordings.comparison import compare as compare_two
    from calibrate.recordings.side_by_side import side_by_side
    from reports.compare.report import page_target, write_compare_report
    from reports.compare.runs_page import write_runs_page
    from reports.compare.runs_table import runs_table
    from reports.compare.runs_words import headline, title
    from reports.compare.table import comparison_table

    if len(runs) < 2:
        raise InputError(f"{runs[0]}: one run, nothing to compare it with: name a second one")
    with reading(*runs):
        target = page_target(out, runs[0])
        if len(runs) == 2 and (whole := _aggregates(runs[1], aggregates_in)) is not None:
            side, _, summary = _side(runs[0])
            beside = compare_aggregates(side, whole, notes=_times([summary]))
            _show(beside.as_dict(), comparison_table, beside.notes, as_json=as_json)
            return
        sides, settings, summaries = zip(*map(_side, runs), strict=True)
        notes = _times(summaries)
        if len(runs) > 2 or sides[0].recorded == sides[1].recorded:
            several = side_by_side(sides, settings=settings, summaries=summaries, notes=notes)
            if target is not None:
                write_runs_page(target, several)
            figures = several.as_dict()
            figures |= {"title": title(figures), "words": headline(figures)}
            _show(figures, lambda given, _: runs_table(given), several.notes, as_json=as_json)
        else:
            both = None if None in settings else settings
            compared = compare_two(*sides, settings=both, summaries=summaries, notes=notes)
            if target is not None:
                write_compare_report(target, compared)
            _show(compared.as_dict(), comparison_table, compared.notes, as_json=as_json)
    if target is not None and not as_json:
        print(f"Page: {target}")


def _aggregates(path: Path, read: Any) -> Any:
    from reports.compare.report import is_run_folder

    return None if is_run_folder(path) else read(path)


def _side(path: Path) -> tuple[Measurement, Settings | None, Settings | None]:
    """A run folder or a recording, with its scenario and summary where it has them."""
    from calibrate.recordings.measurement import read_measurement, simulated
    from reports.compare.report import is_run_folder
    from reports.run.folder import load_run

    if not is_run_folder(path):
        return read_measurement(path), None, None
    records, scenario, summary = load_run(path)
    side = simulated(str(path), records.requests, records.preemptions)
    return replace(side, recorded=summary.get("mode") == "engine"), scenario, summary


def _times(summaries: Sequence[Settings | None]) -> list[str]:
    """What to know of iteration times that nobody measured."""
    from calibrate.recordings.side_by_side import NAMES
    from scenarios.forecast.basis import cautions, kind_of

    return cautions(
        [
            (name, kind_of(summary["latency"]))
            for name, summary in zip(NAMES, summaries, strict=False)
            if summary is not None and isinstance(summary.get("latency"), Mapping)
        ]
    )


def _show(figures: dict[str, Any], table: Any, notes: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        for note in notes:
            print(f"orcast: note: {note}", file=sys.stderr)
        print(json.dumps(figures))
        return
    from rich.console import Console

    shown: RenderableType = table(figures, tuple(notes))
    Console(highlight=False).print(shown)
