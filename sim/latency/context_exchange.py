"""What tensor-parallel ranks tell each other of decodes whose contexts they share out.

Each reads its part of a context for the query heads of all, so queries are gathered before, and the
partial outputs weighted by their log-sum-exps and added up after attention: three collectives a
layer (`sim.latency.traffic`) and a kernel that weights.

Prompts are left as without: what vLLM gathers for chunks that have a context is not counted, nor is
that a rank reads less of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.latency.communication import all_gather_s
from sim.latency.traffic import context_exchange_bytes
from sim.model.hardware import Interconnect
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec


class ContextExchange:
    """Seconds of all layers by the number of decodes, `launch_s` for each of the kernels."""

    def __init__(
        self,
        model: ModelSpec,
        parallelism: Parallelism,
        interconnect: Interconnect,
        *,
        link_efficiency: float,
        launch_s: float,
        max_num_seqs: int,
    ) -> None:
        self._ranks = parallelism.decode_context_parallel
        self._per_node = min(self._ranks, parallelism.tensor_per_node)
        self._bytes = list(context_exchange_bytes(model, parallelism).values())
        self._interconnect = interconnect
        self._link_efficiency = link_efficiency
        self._layers, self._launches_s = model.num_layers, model.num_layers * launch_s
        self._table_s: list[float] = self._total_s(np.arange(max_num_seqs + 1)).tolist()

    @classmethod
    def of(
        cls,
        model: ModelSpec,
        parallelism: Parallelism,
        interconnect: Interconnect,
        **settings: Any,
    ) -> ContextExchange | None:
        """None where every rank holds the contexts of its heads."""
        if parallelism.decode_context_parallel == 1:
            return None
        return cls(model, parallelism, interconnect, **settings)

    def seconds(self, decodes: int) -> float:
        """Of one iteration's decodes."""
        if decodes < len(self._table_s):
            return self._table_s[decodes]
        return float(self._total_s(np.array([decodes]))[0])

    def links_s(self, decodes: np.ndarray) -> np.ndarray:
        """The collectives alone, for each number of decodes (any shape)."""
        total = np.zeros(decodes.shape)
        for result in self._bytes:
            total += all_gather_s(
                decodes * float(result), self._ranks, self._interconnect,
                ranks_per_node=self._per_node, link_efficiency=self._link_efficiency,
            )  # fmt: skip
        return np.asarray(self._layers * total)

    def _total_s(self, decodes: np.ndarray) -> np.ndarray:
        return np.asarray(self.links_s(decodes) + np.where(decodes > 0, self._launches_s, 0.0))
