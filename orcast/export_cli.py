"""`orcast export`: what a command found, in other programs' formats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scenarios.errors import InputError, did_you_mean, reading

if TYPE_CHECKING:
    import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet's formula begins
RECORDS = {"aiperf": "profile_export.jsonl", "guidellm": "benchmarks.json"}  # as they name them
FORMATS = ("trace", "bench", "aiperf", "guidellm", "csv", "png", "svg")


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder of a run, sweep, plan, sizing, calibration or validation; for pictures "
            "also a page, such as compare.html.",
        ),
    ],
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="trace: Chrome/Perfetto trace of a run; bench, aiperf, guidellm: a run "
            "as vLLM bench serve, AIPerf or GuideLLM write it; "
            "csv: the tables; png, svg: every chart of the page.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="File or folder (default: in that folder)."),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(metavar="START:END", help="trace: only these seconds of the run."),
    ] = None,
) -> None:
    """Write a run, or the tables and charts of any result, as something that other tools read."""
    if format_ not in FORMATS:
        raise InputError(f"unknown format {format_!r}; {did_you_mean(format_, FORMATS)}")
    if window is not None and format_ != "trace":
        raise InputError("--window belongs to the format trace")
    start_s, end_s = _window(window)
    with reading(source):
        if format_ == "trace":
            said = _trace(source, out, start_s, end_s)
        elif format_ == "bench":
            said = _bench(source, out)
        elif format_ in ("aiperf", "guidellm"):
            said = _records(source, out, format_)
        elif format_ == "csv":
            said = _csv(source, out)
        else:
            said = _pictures(source, out, format_)
    print(said)


def _trace(folder: Path, out: Path | None, start_s: float, end_s: float) -> str:
    from reports.export.target import check_file
    from reports.export.trace import write_trace
    from reports.run.folder import load_run

    _check_run(folder, "trace")
    records, _, _ = load_run(folder)
    target = out or folder / "trace.json.gz"
    check_file(target, "trace")
    events = write_trace(target, records, start_s=start_s, end_s=end_s)
    return f"{events:,} events: {target} (open it at ui.perfetto.dev or chrome://tracing)"


def _bench(folder: Path, out: Path | None) -> str:
    from reports.export.bench import bench_result
    from reports.export.target import check_file
    from reports.run.folder import load_run
    from scenarios.whole import write_whole

    _check_run(folder, "bench")
    records, scenario, summary = load_run(folder)
    target = out or folder / "bench.json"
    check_file(target, "bench")
    result = bench_result(records, scenario=scenario, summary=summary)
    write_whole(target, json.dumps(result) + "\n")
    return f"Written: {target}"


def _records(folder: Path, out: Path | None, format_: str) -> str:
    from reports.export.records import aiperf_records, guidellm_result
    from reports.export.target import check_file
    from reports.run.folder import load_run
    from scenarios.whole import write_whole

    _check_run(folder, format_)
    records, scenario, _ = load_run(folder)
    target = out or folder / RECORDS[format_]
    check_file(target, format_)
    if format_ == "aiperf":
        text = aiperf_records(records)
    else:
        text = json.dumps(guidellm_result(records, scenario=scenario)) + "\n"
    write_whole(target, text)
    return f"Written: {target}"


def _check_run(folder: Path, format_: str) -> None:
    """ValueError for a folder that is a result, but not of a run."""
    from reports.export.result_folder import KINDS, kind_of

    kind = kind_of(folder)
    if kind != "run":
        allowed = "png, svg" if kind in ("table", "validation") else "csv, png, svg"
        raise ValueError(
            f"{folder} is {KINDS[kind]}; {format_} is of a run. Allowed here: {allowed}"
        )


def _csv(folder: Path, out: Path | None) -> str:
    from reports.export.result_folder import tables_of
    from reports.export.target import check_file, check_folder
    from scenarios.whole import filled_folder

    paths = tables_of(folder)
    target = out or folder / "csv"
    check_folder(target)
    tables = {name: _table(path) for name, path in paths.items()}
    for name, table in tables.items():
        check_file(target / f"{name}.csv", "csv", columns=",".join(table.columns[:2]))
    with filled_folder(target) as partial:
        for name, table in tables.items():
            _harmless(table).to_csv(partial / f"{name}.csv", index=False)
    return f"Written: {target}"


def _harmless(table: pd.DataFrame) -> pd.DataFrame:
    """Without texts that a spreadsheet would take for formulas: an apostrophe makes them texts.

    As OWASP has it ("CSV Injection").
    """
    table = table.copy()
    for name in table.columns:
        if table[name].dtype == object or str(table[name].dtype).startswith("str"):
            table[name] = [
                f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
                for value in table[name]
            ]
    return table


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from None


def _pictures(source: Path, out: Path | None, format_: str) -> str:
    from reports.export.images import picture_paths, write_images
    from reports.export.result_folder import page_of
    from reports.export.target import check_file, check_folder
    from reports.page.page_figures import page_figures

    if source.is_file():
        page = source
        target = out or source.parent / f"{source.stem}-{format_}"
    else:
        page, target = page_of(source), out or source / format_
    figures = page_figures(page)
    check_folder(target)
    for path in picture_paths(target, figures, format_):
        check_file(path, format_)
    target.mkdir(parents=True, exist_ok=True)
    try:
        paths = write_images(target, figures, format_)
    except RuntimeError as error:
        raise InputError(str(error)) from None
    return f"{len(paths)} pictures: {target}"


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
