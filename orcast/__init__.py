"""Orcast: forecasts how an LLM serving deployment will behave before anyone pays for it.

import orcast
run = orcast.simulate("quickstart", {"engine.max_num_seqs": 64})
run.summary["p99_ttft_ms"]
table, figure, summary = orcast.size(overrides={"budget.usd": 50_000})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.size_notebook import SizeStudy
    from scenarios.forecast import Forecast

__version__ = "0.1.0"


def simulate(
    scenario: str, overrides: Mapping[str, Any] | None = None, *, step: bool = False
) -> Forecast:
    """Forecast the scenario of this name or file, with some paths set to other values.

    Returns records (columns of numpy arrays), summary and resolved scenario. Raises
    `scenarios.errors.InputError` for a scenario that cannot be simulated.
    """
    from orcast.calibrate_cli import compose
    from scenarios.forecast import forecast
    from scenarios.load import load_scenario

    loaded, origin = load_scenario(scenario, _settings(overrides))
    return forecast(loaded, origin=origin, compose=compose, leap=not step)


def size(sizing: str | None = None, overrides: Mapping[str, Any] | None = None) -> SizeStudy:
    """Size a model by scaling laws, as `orcast size` does, with some paths set to other values.

    Returns ``(table, figure, summary)``: a tidy DataFrame with a row for each candidate model, a
    Plotly figure of training against serving cost (or the isoFLOP curves, or the memory), and all
    figures as plain data. Raises `scenarios.errors.InputError` for a sizing that cannot be
    answered.
    """
    from orcast.calibrate_cli import compose
    from reports.size_notebook import size_study
    from scenarios.sizing import size as answer
    from scenarios.sizing_load import load_sizing

    loaded, origin = load_sizing(sizing, _settings(overrides))
    return size_study(answer(loaded, origin=origin, compose=compose))


def _settings(overrides: Mapping[str, Any] | None) -> Iterable[str]:
    """Overrides as the command line writes them.

    JSON is YAML: a value given as a Python object reads back as itself.
    """
    import json

    return [
        f"{path}={json.dumps(value, ensure_ascii=False, default=_plain)}"
        for path, value in (overrides or {}).items()
    ]


def _plain(value: Any) -> Any:
    """A numpy scalar as a number, a path as text."""
    return value.item() if hasattr(value, "item") else str(value)
