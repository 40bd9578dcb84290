"""The roofline of one of several ranks in lockstep that share out a mixture's experts.

`sim.latency.together` has what they share. A batch says how many tokens the fullest rank has and
all of them together; the time is the rank's own, as if it were the slowest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.batch import Batch
from sim.latency.protocol import looked_up
from sim.latency.roofline import RooflineLatency
from sim.latency.together import Padding, exchange_s, slowest_share
from sim.model.hardware import Gpu
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec


class LockstepRoofline(RooflineLatency):
    """`RooflineLatency` of one rank, its experts' part by the tokens of all ranks."""

    def __init__(
        self,
        model: ModelSpec,
        gpu: Gpu,
        *,
        parallelism: Parallelism,
        max_num_batched_tokens: int = 8192,
        capture_sizes: Sequence[int] = (),
        **settings: Any,
    ) -> None:
        """`capture_sizes`: of the graphs in which ranks are padded to the fullest of them."""
        assert model.moe is not None
        super().__init__(
            model,
            gpu,
            parallelism=parallelism,
            max_num_batched_tokens=max_num_batched_tokens,
            **settings,
        )
        most = parallelism.data_parallel * max_num_batched_tokens
        counts = np.arange(most + 1)
        self._shared_s: list[float] = self._shared_parts_s(counts)["moe"].tolist()
        self._gathered_s: list[float] = self._exchange_s(counts).tolist()
        self._padding = Padding(parallelism.data_parallel, capture_sizes)

    def _fixed_s(self, batch: Batch) -> float:
        together, gathered = batch.all_tokens or batch.num_tokens, self._padding.pad(batch)
        try:
            shared_s = self._shared_s[together] + self._gathered_s[gathered]
        except IndexError:
            shared_s = float(self._shared_parts_s(np.array([together]))["moe"][0])
            shared_s += float(self._exchange_s(np.array([gathered]))[0])
        return super()._fixed_s(batch) + shared_s

    def _token_parts_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """By the rank's own tokens: all but experts, the way to them, and attention."""
        parts = super()._token_parts_s(tokens)
        del parts["moe"]
        return parts

    def _exchange_s(self, gathered: np.ndarray) -> np.ndarray:
        return exchange_s(
            gathered, self.model, self.parallelism, self._interconnect,
            link_efficiency=self._link_efficiency,
        )  # fmt: skip

    def _shared_parts_s(self, together: np.ndarray) -> dict[str, np.ndarray]:
        """Experts of the slowest GPU, by the tokens of all ranks."""
        moe, gpus = self.model.moe, self.parallelism.expert_parallel
        assert moe is not None
        rows, activated = slowest_share(self.routing, together, gpus)
        held = moe.num_experts // gpus
        experts_s = self._grouped_s(gpus, rows / held, activated / held, tensor_parallel=1)
        return {"moe": np.where(together > 0, experts_s, 0.0)}

    # -- recorded iterations --------------------------------------------------------------------

    def known_parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As on one rank alone; what is left is attention and waiting for the slowest rank."""
        padded = self._padding.recorded(iterations)
        parts = super().known_parts_s(padded)
        exchange = self._exchange_s(padded["gathered_tokens"])
        parts["communication"] = parts["communication"] + exchange
        return parts | looked_up(self._shared_parts_s, iterations["all_tokens"])

    def _within_parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        padded = self._padding.recorded(iterations)
        within = super()._within_parts_s(padded)
        within["all_to_all"] = self._exchange_s(padded["gathered_tokens"])
        return within
