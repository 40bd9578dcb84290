"""`orcast ui`: a local page that forecasts again whenever a knob is turned."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orcast.composed import compose
from scenarios.errors import InputError

if TYPE_CHECKING:
    from dash import Dash

    from reports.what_if.page import Ask
    from scenarios.schema.knobs import Knob
    from scenarios.schema.scenario import Scenario


def ui(
    scenario: Annotated[
        str, typer.Argument(metavar="[SCENARIO]", help="A scenario file, or a library name.")
    ] = "quickstart",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Override one value; may be repeated."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8050,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Serve the what-if page on this machine alone, until interrupted."""
    from reports.what_if.page import HOST

    port = _free_port(HOST, port)
    app, warnings = what_if(scenario, set_ or [])
    for warning in warnings:
        print(f"orcast: warning: {warning}", file=sys.stderr)
    url = f"http://{HOST}:{port}/"
    print(f"What-if page: {url} (Ctrl-C ends it)", flush=True)
    if open_:
        import webbrowser

        webbrowser.open(url)
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app.run(host=HOST, port=port, debug=False)


def what_if(name: str, overrides: list[str]) -> tuple[Dash, list[str]]:
    """The page of one scenario, and what to know before believing it.

    Raises InputError for a scenario that cannot be simulated.
    """
    try:
        import dash  # noqa: F401
    except ModuleNotFoundError:
        raise InputError("orcast ui needs the package dash: pip install 'orcast[ui]'") from None
    from reports.run.headline import report_warnings
    from reports.what_if.page import what_if_app

    base, known, ask = question(name, overrides)
    first = ask({})  # what is wrong with the scenario is said before the page opens
    return what_if_app(base.name, known, ask), report_warnings(first.summary)


def question(name: str, overrides: list[str]) -> tuple[Scenario, list[Knob], Ask]:
    """A scenario, its knobs, and the function that forecasts it with some of them turned."""
    import yaml

    from reports.what_if.page import Answer
    from scenarios.forecast.forecast import forecast
    from scenarios.schema.knobs import as_overrides, knobs
    from scenarios.schema.load import load_scenario

    base, origin = load_scenario(name, overrides)
    known = knobs(base, beside=origin.parent if origin else None)

    def ask(values: Mapping[str, Any]) -> Answer:
        settings = [*overrides, *as_overrides(known, values)]
        scenario, origin = load_scenario(name, settings)
        result = forecast(scenario, origin=origin, compose=compose)
        return Answer(
            result.records,
            result.summary,
            command=shlex.join(
                ["orcast", "run", name, *(part for each in settings for part in ("--set", each))]
            ),
            scenario=yaml.safe_dump(result.scenario, sort_keys=False, allow_unicode=True),
        )

    return base, known, ask


def _free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0. Raises InputError where it is taken."""
    import socket

    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            tried.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise InputError(f"--port {port}: {error.strerror}") from None
            raise InputError(
                f"--port {port}: in use; name another, or 0 for any free one"
            ) from None
        found: int = tried.getsockname()[1]
        return found
