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
        self._axes, grid = filled_grid(
            [part.coordinates["tokens"], part.coordinates["experts"]], part.time_s
        )
        self._columns = [Line(self._axes[0], column.tolist()) for column in grid.T]

    def many(self, tokens: np.ndarray) -> np.ndarray:
        """Times for these token counts."""
        axis = np.array(self._axes[1])
        activated = np.clip(self._routing.activated(tokens), axis[0], axis[-1])
        low = np.clip(np.searchsorted(axis, activated, side="right") - 1, 0, max(len(axis) - 2, 0))
        times_s = np.zeros(len(tokens))
        for column in np.unique(low).tolist():
            here = low == column
            fewer = self._columns[column].many(tokens[here])
            if column + 1 < len(axis):
                share = (activated[here] - axis[column]) / (axis[column + 1] - axis[column])
                fewer = fewer + share * (self._columns[column + 1].many(tokens[here]) - fewer)
            times_s[here] = fewer
        return times_s

    def at(self, tokens: float, activated: float) -> float:
        """Seconds at a number of activated experts."""
        low, high, share = bracket(self._axes[1], activated)
        fewer, more = self._columns[low](tokens), self._columns[high](tokens)
        return fewer + share * (more - fewer)
