"""`orcast serve`: the forecast as a live, OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from orcast.options import SetOption
from scenarios.errors import InputError


def serve(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="A scenario file, or a library name.")
    ],
    set_: SetOption = None,
    host: Annotated[str, typer.Option(help="Where to listen; others than this machine alone are "
                                      "let in by 0.0.0.0.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    speed: Annotated[
        float, typer.Option(min=0.01, max=1000.0, help="Times as fast as life.")
    ] = 1.0,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option("--served-model-name", metavar="NAME", help="Default: the scenario's model."),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", metavar="KEY", help="Ask for one of these (or ORCAST_API_KEY)."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json, or a folder with one; "
                     "without it four characters are a token."),
    ] = None,
    fail: Annotated[
        list[str] | None,
        typer.Option("--fail", metavar="REPLICA@T[+D]", help="Let a replica fail T simulated "
                     "seconds after the first request, for D seconds."),
    ] = None,
    on_failure: Annotated[
        str, typer.Option("--on-failure", help="What becomes of a failed replica's requests: "
                          "retry (elsewhere), or drop (connections break off).")
    ] = "retry",
    error_rate: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of requests that get an error 500.")
    ] = 0.0,
    drop_rate: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of answers that break off.")
    ] = 0.0,
    slow_start: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Answer 503 for so long at first.")
    ] = 0.0,
    due_times: Annotated[
        bool,
        typer.Option("--due-times", help="Tell in a comment before each event of a stream when its "
                     "first token was due, in seconds since 1970."),
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="DIR", help="Write a run folder of what was served."),
    ] = None,
) -> None:  # fmt: skip
    """Serve a scenario's forecast in real time, until interrupted."""
    _needs_starlette()
    if on_failure not in ("retry", "drop"):
        raise InputError(f"--on-failure {on_failure}: allowed are retry and drop")
    from orcast.serve.composing import Wanted, serve_wanted

    keys = api_key or [key for key in (os.environ.get("ORCAST_API_KEY"),) if key]
    serve_wanted(
        Wanted(
            scenario, tuple(set_ or ()), host=host, port=port, speed=speed,
            names=tuple(served_model_name or ()), api_keys=tuple(keys), tokenizer=tokenizer,
            fail=tuple(fail or ()), cuts=on_failure == "drop", error_rate=error_rate,
            drop_rate=drop_rate, slow_start_s=slow_start, due_times=due_times,
            record=record,
        ),
        warn=lambda text: print(f"orcast: warning: {text}", file=sys.stderr),
    )  # fmt: skip


def _needs_starlette() -> None:
    try:
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"orcast serve needs the package {error.name}: pip install 'orcast[serve]'"
        ) from None
