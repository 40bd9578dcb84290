"""Options that several commands have, each with one meaning and one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override one value; may be repeated."),
]
RunFolderOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Run folder (default: runs/NAME).")
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Processes (default: all cores).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but what went wrong.")
]
