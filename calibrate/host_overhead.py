"""Host time of an iteration, measured with the engine: a fixed part and a part per sequence.

What is not forward pass and sampling is the host's: scheduling, preparing inputs, waiting for the
tokens, bookkeeping. The engine serves batches of several sizes and a line is drawn through the
medians.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibrate.engine import Clock, engine
from kernels.transformer import Transformer
from sim.engine_config import EngineConfig
from sim.latency.protocol import HostOverhead
from sim.workload.workload import Workload

_PROMPT_TOKENS = 16
_WARM_UP = 8  # iterations that do not count


def measure_host_overhead(
    model: Transformer,
    *,
    max_num_seqs: int = 256,
    block_size: int = 16,
    iterations: int = 48,
    capture_sizes: Sequence[int] = (),
) -> HostOverhead:
    """Decode with batches of 1, 4, 16, … sequences, `iterations` of each.

    `capture_sizes` are those of the CUDA graphs, as the engine to be forecast will have them.
    """
    sizes = [size for size in (1, 4, 16, 64, 256) if size <= max_num_seqs]
    medians_s = [
        _median_s(
            model, size, block_size=block_size, iterations=iterations, capture_sizes=capture_sizes
        )
        for size in sizes
    ]
    if len(sizes) == 1:
        return HostOverhead(medians_s[0], 0.0, "measured by the engine")
    # Weighted so that small batches, where host time shows most, are met as well as large ones.
    per_sequence_s, per_iteration_s = np.polyfit(sizes, medians_s, 1, w=1 / np.array(medians_s))
    return HostOverhead(
        max(float(per_iteration_s), 0.0), max(float(per_sequence_s), 0.0), "measured by the engine"
    )


def _median_s(
    model: Transformer,
    num_seqs: int,
    *,
    block_size: int,
    iterations: int,
    capture_sizes: Sequence[int],
) -> float:
    """Median host time of decode iterations with `num_seqs` sequences."""
    workload = Workload(
        arrival_s=np.zeros(num_seqs),
        prompt_tokens=np.full(num_seqs, _PROMPT_TOKENS),
        output_tokens=np.full(num_seqs, _WARM_UP + iterations),
    )
    tokens = _PROMPT_TOKENS + _WARM_UP + iterations
    config = EngineConfig(
        max_num_seqs=num_seqs,
        max_num_batched_tokens=max(num_seqs * _PROMPT_TOKENS, 64),
        block_size=block_size,
        enable_prefix_caching=False,
    )
    served = engine(
        workload, config, model, scheduler="chunked",
        num_blocks=num_seqs * -(-tokens // block_size), clock=Clock(skip_idle=True),
        capture_sizes=capture_sizes,
    ).run()  # fmt: skip
    ran = served.records.iterations
    host_s = ran["duration_s"] - ran["forward_s"] - ran["sample_s"]
    return float(np.median(host_s[_WARM_UP:]))
