"""Measured times of one of several ranks in lockstep that share out a mixture's experts.

A table may have times of the GPU that is sent most rows, by the tokens of all ranks: its meta has
``expert_ranks``, so many GPUs share the experts out. Otherwise it holds all experts on one GPU. A
GPU that holds some, and is sent some of all ranks' rows (`sim.latency.together`), takes as long as
that one with as many rows and experts activated: r rows are r / k tokens. Raises ValueError where
the table cannot tell that: it was measured with every expert split (tensor_parallel above 1), with
one number of experts activated only, or with other ``expert_ranks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.batch import Batch
from sim.latency.refinement import Refinement
from sim.latency.table import TableLatency
from sim.latency.table_data import LatencyTable
from sim.latency.together import Padding, exchange_s, slowest_share
from sim.model.expert_routing import ExpertRouting
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec


class LockstepTable(TableLatency):
    """`TableLatency` of one rank, its experts' part by the tokens of all ranks."""

    def __init__(
        self,
        table: LatencyTable,
        model: ModelSpec,
        *,
        parallelism: Parallelism,
        routing: ExpertRouting | None = None,
        max_num_batched_tokens: int = 8192,
        launch_s: float = 0.0,
        **settings: Any,
    ) -> None:
        moe = model.moe
        assert moe is not None
        self._shared_out = shares_experts(table)
        if self._shared_out:
            check_shares(table, parallelism)
        elif parallelism.tensor_parallel > 1:
            raise ValueError(
                f"the table's experts are split over tensor_parallel "
                f"{parallelism.tensor_parallel}, those of data-parallel ranks are whole: set "
                "hardware.tensor_parallel=1, or take source roofline (unmeasured)"
            )
        elif len(np.unique(table.parts["moe"].coordinates["experts"])) < 2:
            raise ValueError(
                "the table's expert times have one number of experts activated, ranks that share "
                "out experts need several; source roofline has them (unmeasured)"
            )
        if launch_s > 0.0:
            raise ValueError(
                "launch: eager is the engine that Orcast runs, which has no data-parallel ranks"
            )
        self._parallelism = parallelism
        self._experts_per_token = moe.experts_per_token
        chosen = moe.num_experts, moe.experts_per_token
        self._chosen = ExpertRouting.uniform(*chosen) if routing is None else routing
        most = np.arange(parallelism.data_parallel * max_num_batched_tokens + 1)
        self._shares = slowest_share(self._chosen, most, parallelism.expert_parallel)
        super().__init__(
            table,
            model,
            routing=routing,
            max_num_batched_tokens=max_num_batched_tokens,
            **settings,
        )
        self.parallel = True

    def refine(self, refinement: Refinement) -> None:
        self._shared: dict[int, float] = {0: 0.0}
        super().refine(refinement)
        counts = np.arange(len(self._shares[0]))
        self._gathered_s: list[float] = self._exchange_s(counts).tolist()
        self._padding = Padding(self._parallelism.data_parallel, self._capture_sizes)

    def _fixed_s(self, batch: Batch) -> float:
        gathered = self._padding.pad(batch)
        found_s = super()._fixed_s(batch) + self._shared_s(batch.all_tokens or batch.num_tokens)
        try:
            return found_s + self._gathered_s[gathered]
        except IndexError:
            return found_s + float(self._exchange_s(np.array([gathered]))[0])

    def _shared_s(self, together: int) -> float:
        """Experts of the slowest GPU, by the tokens of all ranks."""
        found_s = self._shared.get(together)
        if found_s is None:
            assert self._experts is not None
            tokens, activated = float(together), 0.0
            if not self._shared_out:
                rows, activated = self._share_of(together)
                tokens = rows / self._experts_per_token
            found_s = self._experts.at(tokens, activated)
            self._shared[together] = found_s
        return found_s

    def _share_of(self, together: int) -> tuple[float, float]:
        rows, activated = self._shares
        if together < len(rows):
            return float(rows[together]), float(activated[together])
        ranks = self._parallelism.expert_parallel
        rows, activated = slowest_share(self._chosen, np.array([together]), ranks)
        return float(rows[0]), float(activated[0])

    def _computed_parts_s(self, tokens: np.ndarray, padded: np.ndarray) -> dict[str, np.ndarray]:
        """By the rank's own tokens: all but experts, the way to them, and attention."""
        parts = super()._computed_parts_s(tokens, padded)
        del parts["moe"]
        return parts

    def _exchange_s(self, gathered: np.ndarray) -> np.ndarray:
        # A link's own figures, as measured, or shares of a datasheet's.
        link = {"link_efficiency": 1.0, "launch_s": 0.0} if self._link_measured else {}
        return exchange_s(gathered, self._model, self._parallelism, self.interconnect, **link)

    # -- recorded iterations --------------------------------------------------------------------

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As on one rank alone; attention has waiting for the slowest rank in it."""
        padded, together = self._padding.recorded(iterations), iterations["all_tokens"]
        parts = super().parts_s(padded)
        counts = np.unique(together)
        each_s = np.array([self._shared_s(int(count)) for count in counts])
        parts["moe"] = each_s[np.searchsorted(counts, together)]
        exchange_s = self._exchange_s(padded["gathered_tokens"])
        parts["communication"] = parts.get("communication", 0.0) + exchange_s
        known_s = parts["moe"] + exchange_s
        parts["attention"] = np.maximum(parts["attention"] - known_s, 0.0)
        return parts

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same by class of operation, what is between ranks that share experts apart."""
        padded = self._padding.recorded(iterations)
        classes = super().operators_s(padded)
        classes["all_to_all"] = self._exchange_s(padded["gathered_tokens"])
        sums_s = classes.pop("all_reduce") - classes["all_to_all"]
        if self._parallelism.tensor_parallel > 1:
            classes["all_reduce"] = sums_s
        return classes


def shares_experts(table: LatencyTable) -> bool:
    """Whether experts' times are of one of several GPUs, by the tokens of all their ranks."""
    return int(table.meta.get("expert_ranks") or 1) > 1


def check_shares(table: LatencyTable, parallelism: Parallelism) -> None:
    """Raise ValueError where other GPUs share experts out than those of the table's."""
    shared = parallelism.expert_parallel if parallelism.data_parallel > 1 else 1
    if shares_experts(table) and table.meta["expert_ranks"] != shared:
        raise ValueError(
            f"the table's experts are shared out to {table.meta['expert_ranks']} GPUs, in lockstep "
            f"with data-parallel ranks; hardware asks for {parallelism.words}"
        )
