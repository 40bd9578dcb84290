"""What electricity costs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scenarios.schema.section import NotNegative, Section
from sim.model.power import JOULES_PER_KWH


class Electricity(Section):
    """What electricity costs; energy is estimated from how busy the GPUs are, boards alone.

    Both are round assumptions, yours to edit. A rented GPU's price includes its electricity.
    """

    usd_per_kwh: NotNegative = 0.1
    # what the whole building draws over what its machines do (power usage effectiveness)
    pue: Annotated[float, Field(ge=1, le=5, allow_inf_nan=False)] = 1.2

    def usd(self, joules: float) -> float:
        """What the joules of machines cost, the building's share with them."""
        return joules * self.pue / JOULES_PER_KWH * self.usd_per_kwh
