"""What ranks in lockstep have in common: tokens of all at the experts, and the way there and back.

Attention and matrix products are each rank's own. Where the fullest rank's tokens fit a captured
graph, all are padded to it; where not, none is (vLLM's ``coordinate_batch_across_dp``, read in its
main branch). At every layer's experts the ranks' tokens, padding included, are all-gathered, each
GPU computes the rows whose experts it holds, and a reduce-scatter gives every rank its own tokens'
sums: vLLM's default ``--all2all-backend allgather_reducescatter``. Of g tokens gathered a layer:

    2 x all-gather of g hidden numbers      a reduce-scatter takes as long
    experts                                 of the GPU with most rows, by the tokens of all ranks

Rows of padding are taken to cost the experts nothing, the choices of experts that travel along and
the ranks' agreement on a step (16 bytes a rank) to cost the link nothing. Within a rank of several
GPUs sums are over its tensor-parallel group, as without expert ranks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.batch import Batch
from sim.latency.communication import all_gather_s
from sim.model.expert_routing import ExpertRouting
from sim.model.hardware import Interconnect
from sim.model.parallelism import Parallelism
from sim.model.spec import DTYPE_BYTES, ModelSpec


class Padding:
    """How many tokens `ranks` compute and gather; graphs are captured of `sizes`, none: of none."""

    def __init__(self, ranks: int, sizes: Sequence[int]) -> None:
        self._ranks = ranks
        self._sizes = sorted(sizes)
        self._most = max(sizes, default=0)

    def pad(self, batch: Batch) -> int:
        """Say in the batch what it is padded to; returns the tokens gathered from all ranks."""
        fullest = batch.fullest_tokens or batch.num_tokens
        if not self._sizes or fullest > self._most:
            batch.padded_tokens = batch.num_tokens
            return batch.all_tokens or batch.num_tokens
        batch.padded_tokens = fullest
        return self._ranks * self._sizes[bisect_left(self._sizes, fullest)]

    def recorded(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Recorded iterations whose ``num_tokens`` are padded, with ``gathered_tokens``."""
        fullest, tokens = iterations["fullest_tokens"], iterations["num_tokens"]
        gathered = iterations["all_tokens"]
        if self._sizes:
            sizes = np.array(self._sizes)
            slot = np.minimum(np.searchsorted(sizes, fullest), len(sizes) - 1)
            fits = fullest <= self._most
            tokens = np.where(fits, fullest, tokens)
            gathered = np.where(fits, self._ranks * sizes[slot], gathered)
        return {**iterations, "num_tokens": tokens, "gathered_tokens": gathered}


def exchange_s(
    gathered: np.ndarray,
    model: ModelSpec,
    parallelism: Parallelism,
    interconnect: Interconnect,
    **link: Any,
) -> np.ndarray:
    """Seconds to the experts of all layers and back, by the tokens gathered in each."""
    moe = model.moe
    assert moe is not None
    each_s = all_gather_s(
        gathered * float(model.hidden_size * DTYPE_BYTES[model.dtype]),
        parallelism.data_parallel,
        interconnect,
        ranks_per_node=parallelism.data_per_node,
        **link,
    )
    return np.asarray(2 * moe.num_layers * each_s)


def slowest_share(
    routing: ExpertRouting, together: np.ndarray, ranks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and activated experts of the GPU with most of each, by the tokens of all ranks."""
    rows = routing.slowest_rank_load(together, ranks)
    return rows, routing.activated_on_slowest_rank(together, ranks)
