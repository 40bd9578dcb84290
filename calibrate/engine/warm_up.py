"""Serving everything once before anything is timed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from calibrate.engine.assembly import engine
from calibrate.engine.engine import Clock
from kernels.transformer import Transformer
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload


def warm_up(model: Transformer, config: EngineConfig, *, num_blocks: int) -> None:
    """Serve prompts of every magnitude, one after the other: compiles what will be timed.

    In an engine of its own with a cache just large enough, `num_blocks` at most, to be called
    before the timed one is made. Raises MemoryError where it does not fit.
    """
    longest = min(
        config.max_num_batched_tokens,
        config.max_model_len - 2,
        (num_blocks - 1) * config.block_size - 2,
    )
    if longest < 1:
        return
    prompts = np.array([*(1 << power for power in range(longest.bit_length())), longest])
    arrival_s = np.array([1e3 * number for number in range(len(prompts))], dtype=np.float64)
    engine(
        Workload(arrival_s, prompts, np.full(len(prompts), 2)),
        replace(config, queue=None, async_scheduling=False),
        model,
        scheduler="chunked",
        num_blocks=-(-(longest + 2) // config.block_size) + 1,
        clock=Clock(skip_idle=True),
    ).run()
