"""A mixture of experts from measured points: tokens, and how many experts they activate."""

from __future__ import annotations

import numpy as np

from sim.latency.grid import Line, bracket, filled_grid
from sim.latency.table_data import Part
from sim.model.expert_routing import ExpertRouting
from sim.model.spec import ModelSpec


class ExpertTable:
    """Seconds of a mixture of experts by tokens, at the experts that these activate on average.

    Raises ValueError where routing is not uniform and the table has one number of experts only:
    its times then have the routing of the measurement in them.
    """

    def __init__(self, part: Part, model: ModelSpec, routing: ExpertRouting | None = None) -> None:
        assert model.moe is not None
        chosen = model.moe.num_experts, model.moe.experts_per_token
        self._routing = ExpertRouting.uniform(*chosen) if routing is None else routing
        if routing is not None and len(np.unique(part.coordinates["experts"])) < 2:
            raise ValueError(
                "the table's expert times are of the routing they were measured with: experts may "
                "be set where several numbers of activated experts were measured, or with source "
                "roofline"
            )
        self._axes, self._grid = filled_grid(
            [part.coordinates["tokens"], part.coordinates["experts"]], part.time_s
        )

    def many(self, tokens: np.ndarray) -> np.ndarray:
        """Times for these token counts."""
        return np.array([self._one(int(count)) for count in tokens.tolist()])

    def _one(self, tokens: int) -> float:
        return self.at(tokens, float(self._routing.activated(np.array([tokens]))[0]))

    def at(self, tokens: float, activated: float) -> float:
        """Seconds at a number of activated experts."""
        low, high, share = bracket(self._axes[1], activated)
        column = self._grid[:, low] + share * (self._grid[:, high] - self._grid[:, low])
        return Line(self._axes[0], column.tolist())(tokens)
