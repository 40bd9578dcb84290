"""The roofline of one of several ranks in lockstep that share out a mixture's experts.

`sim.latency.together` has what they share. A batch says how many tokens the fullest rank has and
all of them together; the time is the rank's own, as if it were the slowest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.batch import Batch
from sim.latency.protocol import looked_up
from sim.latency.roofline import RooflineLatency
from sim.latency.together import by_step, exchange_s, slowest_share
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
        **settings: Any,
    ) -> None:
        assert model.moe is not None
        super().__init__(
            model,
            gpu,
            parallelism=parallelism,
            max_num_batched_tokens=max_num_batched_tokens,
            **settings,
        )
        most = parallelism.data_parallel * max_num_batched_tokens
        self._shared_s: list[float] = self._shared_parts_s(np.arange(most + 1))["moe"].tolist()

    def _fixed_s(self, batch: Batch) -> float:
        together = batch.all_tokens or batch.num_tokens
        try:
            shared_s = self._shared_s[together]
        except IndexError:
            shared_s = float(self._shared_parts_s(np.array([together]))["moe"][0])
        return super()._fixed_s(batch) + shared_s

    def _token_parts_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """By the fullest rank's tokens: all but the experts themselves and attention."""
        parts = super()._token_parts_s(tokens)
        del parts["moe"]
        parts["communication"] = parts["communication"] + self._exchange_s(tokens)
        return parts

    def _exchange_s(self, fullest: np.ndarray) -> np.ndarray:
        return exchange_s(
            fullest, self.model, self.parallelism, self._interconnect,
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
        parts = super().known_parts_s(by_step(iterations))
        return parts | looked_up(self._shared_parts_s, iterations["all_tokens"])

    def _within_parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        within = super()._within_parts_s(by_step(iterations))
        within["all_to_all"] = self._exchange_s(iterations["fullest_tokens"])
        return within
