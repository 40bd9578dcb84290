"""Orcast: forecasts how an LLM serving deployment will behave before anyone pays for it.

import orcast
run = orcast.simulate("quickstart", {"engine.max_num_seqs": 64})
run.summary["p99_ttft_ms"]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orcast.planned import Planned
    from scenarios.forecast import Forecast

__version__ = "0.1.0"


def simulate(
    scenario: str, overrides: Mapping[str, Any] | None = None, *, step: bool = False
) -> Forecast:
    """Forecast the scenario of this name or file, with some paths set to other values.

    Returns records (columns of numpy arrays), summary and resolved scenario. Raises
    `scenarios.errors.InputError` for a scenario that cannot be simulated.
    """
    import json

    from orcast.calibrate_cli import compose
    from scenarios.forecast import forecast
    from scenarios.load import load_scenario

    # JSON is YAML: a value given as a Python object reads back as itself.
    settings = [
        f"{path}={json.dumps(value, ensure_ascii=False, default=_plain)}"
        for path, value in (overrides or {}).items()
    ]
    loaded, origin = load_scenario(scenario, settings)
    return forecast(loaded, origin=origin, compose=compose, leap=not step)


def plan(scenario: str, overrides: Mapping[str, Any] | None = None, *, jobs: int = 1) -> Planned:
    """Find the cheapest deployment for a load: `.chosen`, `.table`, `.figure`, `.answer`.

    Several `jobs` start fresh interpreters: a script that asks for them needs an
    ``if __name__ == "__main__"``. Raises `scenarios.errors.InputError` for a question that cannot
    be asked; a service level that nothing meets is an answer.
    """
    from orcast.planned import plan as planned

    return planned(scenario, overrides, jobs=jobs)


def _plain(value: Any) -> Any:
    """A numpy scalar as a number, a path as text."""
    return value.item() if hasattr(value, "item") else str(value)
