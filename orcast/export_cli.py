"""`orcast export`: a run in other programs' formats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from scenarios.errors import InputError, did_you_mean

FORMATS = ("trace", "bench", "csv", "png", "svg")


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")],
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="trace: Chrome/Perfetto trace; bench: vLLM bench serve JSON; csv: the tables; "
            "png, svg: every chart.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="File or folder (default: in the run folder)."),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(metavar="START:END", help="trace: only these seconds of the run."),
    ] = None,
) -> None:
    """Write a run as something that other tools read."""
    from reports.run_folder import load_run

    if format_ not in FORMATS:
        raise InputError(f"unknown format {format_!r}; {did_you_mean(format_, FORMATS)}")
    if window is not None and format_ != "trace":
        raise InputError("--window belongs to the format trace")
    start_s, end_s = _window(window)
    try:
        records, scenario, summary = load_run(directory)
    except ValueError as error:
        raise InputError(str(error)) from None
    default = {"trace": "trace.json.gz", "bench": "bench.json"}.get(format_, format_)
    target = out or directory / default
    if format_ == "trace":
        from reports.trace_export import write_trace

        events = write_trace(target, records, start_s=start_s, end_s=end_s)
        print(f"{events:,} events: {target} (open it at ui.perfetto.dev or chrome://tracing)")
        return
    if format_ == "bench":
        from reports.bench_export import bench_result

        result = bench_result(records, scenario=scenario, summary=summary)
        target.write_text(json.dumps(result) + "\n", encoding="utf-8")
        print(f"Written: {target}")
        return
    target.mkdir(parents=True, exist_ok=True)
    if format_ == "csv":
        import pandas as pd

        for name in ("requests", "iterations", "preemptions"):
            pd.DataFrame(dict(getattr(records, name))).to_csv(target / f"{name}.csv", index=False)
        print(f"Written: {target}")
        return
    from reports.details import load_details
    from reports.image_export import write_images
    from reports.run_report import run_sections

    try:
        details = load_details(directory)
        sections = run_sections(records, scenario=scenario, summary=summary, details=details)
        paths = write_images(target, sections, format_)
    except (RuntimeError, ValueError) as error:
        raise InputError(str(error)) from None
    print(f"{len(paths)} pictures: {target}")


def _window(text: str | None) -> tuple[float, float]:
    if text is None:
        return 0.0, math.inf
    start, _, end = text.partition(":")
    try:
        limits = float(start or 0), float(end or "inf")
    except ValueError:
        limits = (1.0, 0.0)
    if not 0 <= limits[0] < limits[1]:
        raise InputError(f"--window {text}: expected START:END in seconds, e.g. 10:20")
    return limits
