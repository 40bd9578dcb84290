"""`orcast.plan`: a plan for notebooks, as a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orcast.overrides import as_settings

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True)
class Planned:
    """A finished plan: `answer` is the content of plan.json."""

    answer: dict[str, Any]

    @property
    def chosen(self) -> str | None:
        """The cheapest deployment that meets the objectives; None where there is none."""
        chosen: str | None = self.answer["chosen"]
        return chosen

    @property
    def table(self) -> pd.DataFrame:
        """A row for every candidate (`reports.plan.table.candidate_columns`)."""
        import pandas as pd

        from reports.plan.table import candidate_columns

        return pd.DataFrame(candidate_columns(self.answer))

    @property
    def figure(self) -> go.Figure:
        """USD per million output tokens against tokens/s per user, with the Pareto front.

        Where no deployment meets the objectives: an empty figure that says so.
        """
        import plotly.graph_objects as go

        from reports.plan.figures import cost_front
        from reports.plan.words import verdict

        drawn = cost_front(self.answer)
        if drawn is None:
            return go.Figure(layout={"title": {"text": verdict(self.answer)}})
        return drawn.as_plotly(showlegend=True)

    def _repr_html_(self) -> str:
        """A notebook shows the answer in words above its table."""
        from html import escape

        from reports.plan.words import breaking, verdict

        words = " ".join([verdict(self.answer), *breaking(self.answer)])
        return f"<p>{escape(words)}</p>{self.table.to_html()}"


def plan(scenario: str, overrides: Mapping[str, Any] | None = None, *, jobs: int = 1) -> Planned:
    """Find the cheapest deployment for the scenario of this name or file.

    `overrides` sets paths to other values, e.g. ``{"plan.load.request_rate": 80}``. Several `jobs`
    start fresh interpreters: a script that asks for them needs an ``if __name__ == "__main__"``.
    Raises `scenarios.errors.InputError` for a question that cannot be asked.
    """
    from orcast.composed import compose
    from scenarios.plan.plan import plan as plan_scenario
    from scenarios.schema.load import load_scenario

    loaded, origin = load_scenario(scenario, as_settings(overrides))
    return Planned(plan_scenario(loaded, origin=origin, compose=compose, jobs=jobs))
