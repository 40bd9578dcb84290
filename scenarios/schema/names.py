"""Names that the simulator gives: policies, routers and trace formats, as a scenario's choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from sim.cluster.routers import ROUTERS
from sim.schedulers import SCHEDULERS
from sim.workload.traces import FORMATS

if TYPE_CHECKING:  # which they are is known when the program runs
    PolicyName: TypeAlias = str
    RouterName: TypeAlias = str
    TraceFormat: TypeAlias = str
else:
    PolicyName = Literal[tuple(SCHEDULERS)]
    RouterName = Literal[tuple(ROUTERS)]
    TraceFormat = Literal[("auto", *FORMATS)]
