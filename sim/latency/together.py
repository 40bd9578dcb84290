"""What ranks in lockstep have in common: tokens of all at the experts, and the way there and back.

Attention and matrix products are each rank's own, all padded to the fullest rank's tokens (vLLM's
``coordinate_batch_across_dp``). At every layer's experts the ranks' tokens are all-gathered, each
GPU computes the rows whose experts it holds, and a reduce-scatter gives every rank its own tokens'
sums: vLLM's default ``--all2all-backend allgather_reducescatter``. Of n ranks, padded to t tokens:

    2 x all-gather of n t hidden numbers a layer    a reduce-scatter takes as long

Within a rank of several GPUs sums are over its tensor-parallel group, as without expert ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.latency.communication import all_gather_s
from sim.model.expert_routing import ExpertRouting
from sim.model.hardware import Interconnect
from sim.model.parallelism import Parallelism
from sim.model.spec import DTYPE_BYTES, ModelSpec


def exchange_s(
    fullest: np.ndarray,
    model: ModelSpec,
    parallelism: Parallelism,
    interconnect: Interconnect,
    **link: Any,
) -> np.ndarray:
    """Seconds to the experts of all layers and back, by the fullest rank's tokens."""
    moe = model.moe
    assert moe is not None
    ranks = parallelism.data_parallel
    gathered = ranks * fullest * float(model.hidden_size * DTYPE_BYTES[model.dtype])
    each_s = all_gather_s(
        gathered, ranks, interconnect, ranks_per_node=parallelism.data_per_node, **link
    )
    return np.asarray(2 * moe.num_layers * each_s)


def slowest_share(
    routing: ExpertRouting, together: np.ndarray, ranks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and activated experts of the GPU with most of each, by the tokens of all ranks."""
    rows = routing.slowest_rank_load(together, ranks)
    return rows, routing.activated_on_slowest_rank(together, ranks)


def by_step(iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Recorded iterations whose tokens are those of the fullest rank of their step."""
    return {**iterations, "num_tokens": iterations["fullest_tokens"]}
