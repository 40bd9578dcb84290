"""`orcast calibrate numerics`: how far flash attention deviates in low precision."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from orcast.needed import require_torch
from orcast.options import JsonOption
from scenarios.errors import InputError, did_you_mean

MARKER = "numerics.json"
DTYPES = ("bfloat16", "float16")


def numerics(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the page and its figures go.")
    ] = Path("runs/numerics"),
    dtype: Annotated[str, typer.Option("--dtype", help=f"{' or '.join(DTYPES)}.")] = DTYPES[0],
    steps: Annotated[int, typer.Option(min=1, help="Of training, for each of the runs.")] = 120,
    as_json: JsonOption = False,
) -> None:
    """Flash against standard attention in low precision, in a forward pass and in trained weights.

    Emulated on the processor, with every rounding explicit; a minute.
    """
    require_torch("the study of numeric deviation")
    from calibrate.measure.numerics import study
    from reports.calibration.numerics_report import headline, numerics_report
    from reports.run.writer import fresh_folder

    if dtype not in DTYPES:
        raise InputError(f"unknown --dtype {dtype!r}; {did_you_mean(dtype, DTYPES)}")
    with fresh_folder(out, marker=MARKER, files={MARKER, "report.html"}) as partial:
        figures = study(dtype, steps, progress=_progress())
        text = json.dumps(figures, indent=2) + "\n"
        (partial / MARKER).write_text(text, encoding="utf-8")
        (partial / "report.html").write_text(numerics_report(figures), encoding="utf-8")
    if as_json:
        print(json.dumps(figures))
        return
    print(headline(figures))
    print(f"Report: {out / 'report.html'}")


def _progress() -> Callable[[int, int], None] | None:
    """Steps done, on the terminal."""
    if not sys.stderr.isatty():
        return None

    def show(step: int, steps: int) -> None:
        end = "\n" if step == steps else ""
        print(f"\rtraining: step {step} of {steps}", end=end, file=sys.stderr, flush=True)

    return show
