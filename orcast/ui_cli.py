"""`orcast ui`: a local page that forecasts again whenever a knob is turned."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orcast.composed import compose
from orcast.listening import listen
from orcast.options import SetOption
from scenarios.errors import InputError

if TYPE_CHECKING:
    from dash import Dash

    from reports.what_if.answers import Alive, Answer, Ask
    from reports.what_if.page import Remedies
    from scenarios.schema.knobs import Knob
    from scenarios.schema.scenario import Scenario

_SEARCH_S = 2.0  # for what would do instead of a setting that cannot be forecast


def ui(
    scenario: Annotated[
        str, typer.Argument(metavar="[SCENARIO]", help="A scenario file, or a library name.")
    ] = "quickstart",
    set_: SetOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8050,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Serve the what-if page on this machine alone, until interrupted."""
    _needs_dash()
    from reports.what_if.page import HOST
    from reports.what_if.server import PageServer

    with listen(HOST, port) as listening:
        app, warnings = what_if(scenario, set_ or [])
        server = PageServer(listening, app.server)
        for warning in warnings:
            print(f"orcast: warning: {warning}", file=sys.stderr)
        url = f"http://{HOST}:{listening.getsockname()[1]}/"
        print(f"What-if page: {url} (Ctrl-C ends it)", flush=True)
        if open_:
            import webbrowser

            webbrowser.open(url)
        server.serve_forever()


def what_if(name: str, overrides: list[str]) -> tuple[Dash, list[str]]:
    """The page of one scenario, and what to know before believing it.

    Raises InputError for a scenario that cannot be simulated.
    """
    _needs_dash()
    if name == "-":
        raise InputError("orcast ui reads its scenario at every question: give it a file")
    from reports.run.headline import report_warnings
    from reports.what_if.page import what_if_app
    from scenarios.library import scenario_path

    base, known, ask = question(name, overrides)
    first = ask({})  # what is wrong with the scenario is said before the page opens
    file = scenario_path(name)

    def on_page(values: Mapping[str, Any], alive: Alive | None = None) -> Answer:
        try:
            return ask(values, alive)
        except InputError as error:  # the page is of this one file
            raise InputError(str(error).removeprefix(f"{file}: ")) from None

    page = what_if_app(base.name, known, on_page, nearby(name, overrides, known))
    return page, report_warnings(first.summary)


def question(name: str, overrides: list[str]) -> tuple[Scenario, list[Knob], Ask]:
    """A scenario, its knobs, and the function that forecasts it with some of them turned."""
    import yaml

    from reports.what_if.answers import Answer
    from scenarios.forecast.forecast import forecast
    from scenarios.schema.knobs import as_overrides, knobs
    from scenarios.schema.load import load_scenario

    base, origin = load_scenario(name, overrides)
    known = knobs(base, beside=origin.parent if origin else None)

    def ask(values: Mapping[str, Any], alive: Alive | None = None) -> Answer:
        settings = [*overrides, *as_overrides(known, values)]
        told = None if alive is None else lambda ended, total: alive()
        scenario, origin = load_scenario(name, settings)
        result = forecast(scenario, origin=origin, compose=compose, progress=told)
        return Answer(
            result.records,
            result.summary,
            command=shlex.join(
                ["orcast", "run", name, *(part for each in settings for part in ("--set", each))]
            ),
            scenario=yaml.safe_dump(result.scenario, sort_keys=False, allow_unicode=True),
        )

    return base, known, ask


def nearby(name: str, overrides: list[str], known: list[Knob]) -> Remedies:
    """The function that finds, near a setting that has no forecast, those that have one."""
    from scenarios.forecast.deployment import deploy
    from scenarios.schema.knobs import as_overrides, nearest
    from scenarios.schema.load import load_scenario

    def remedies(values: Mapping[str, Any], alive: Alive) -> list[Mapping[str, Any]]:
        end_s = time.monotonic() + _SEARCH_S

        def works(turned: Mapping[str, Any]) -> bool:
            alive()
            if time.monotonic() > end_s:
                return False
            try:
                settings = [*overrides, *as_overrides(known, turned)]
                scenario, origin = load_scenario(name, settings)
                deploy(scenario, origin=origin, compose=compose, remedy=False)
            except ValueError:
                return False
            return True

        return list(nearest(known, values, works))

    return remedies


def _needs_dash() -> None:
    try:
        import dash  # noqa: F401
    except ModuleNotFoundError:
        raise InputError("orcast ui needs the package dash: pip install 'orcast[ui]'") from None
