"""`orcast laws`: scaling laws fitted to your runs, with intervals, and where two of them cross."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from orcast.options import JsonOption


def laws(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS.csv",
            help="Runs: loss and two of parameters, tokens, flops, or one other column. Two files "
            "are compared.",
        ),
    ],
    form: Annotated[
        str, typer.Option("--form", metavar="FORM", help="chinchilla, kaplan or rosenfeld.")
    ] = "chinchilla",
    initial_loss: Annotated[
        float | None, typer.Option("--initial-loss", help="Untrained loss, for rosenfeld.")
    ] = None,
    at: Annotated[
        float | None,
        typer.Option("--at", metavar="X", help="Where to ask: FLOPs, or what the column counts."),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=2, max=10_000, help="Resamplings of the runs.")
    ] = 20,
    confidence: Annotated[float, typer.Option("--confidence", min=0.01, max=0.999)] = 0.95,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.html", help="A page with the charts.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit scaling laws to small runs: coefficients, how the best size grows, where two cross."""
    from scenarios.errors import InputError
    from scenarios.sizing.law_study import read_fit, study

    if at is not None and not 0 < at < float("inf"):
        raise InputError(f"--at {at:g}: expected a number above 0")
    if len(files) > 4:
        raise InputError("laws of at most four files are drawn together")
    fits = [
        read_fit(
            file, form=form, initial_loss=initial_loss, bootstrap=bootstrap,
            confidence=confidence, seed=seed,
        )
        for file in files
    ]  # fmt: skip
    figures = study(fits, at=at)
    if out is not None:
        from reports.size.law_report import law_report
        from scenarios.whole import write_whole

        write_whole(out, law_report(figures))
    if as_json:
        print(json.dumps(figures))
        return
    from rich.console import Console
    from rich.table import Table

    from reports.size.law_rows import comparison_words, law_tables

    console = Console(highlight=False)
    if "comparison" in figures:
        console.print(comparison_words(figures))
        console.print()
    for head, rows in law_tables(figures):
        table = Table(*head, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    if out is not None:
        console.print(f"Report: {out}")
