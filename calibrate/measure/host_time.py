"""What an engine takes beside its passes and its sampling, told by the engine itself."""

from __future__ import annotations

import numpy as np

from calibrate.engine.assembly import engine
from calibrate.engine.wall_clock import Clock
from calibrate.measure.rig import Rig
from sim.schedulers.engine_config import EngineConfig
from sim.workload.workload import Workload

HOST_PROMPT, HOST_ITERATIONS = 16, 12  # tokens of the engine's runs that tell its host's time


def engine_host_s(rig: Rig, num_seqs: int) -> float:
    """Seconds of an engine's iteration that are neither its pass nor its sampling.

    The real engine decodes that many sequences: what it takes to schedule, to prepare inputs, to
    read tokens back and to keep its books, in its least disturbed iteration. Two clocks tell it,
    the host's and the device's: where nothing is left between them, it is none.
    """
    workload = Workload(
        arrival_s=np.zeros(num_seqs),
        prompt_tokens=np.full(num_seqs, HOST_PROMPT),
        output_tokens=np.full(num_seqs, HOST_ITERATIONS),
    )
    config = EngineConfig(
        max_num_seqs=num_seqs,
        max_num_batched_tokens=num_seqs * HOST_PROMPT,
        block_size=rig.block_size,
    )
    blocks = -(-(HOST_PROMPT + HOST_ITERATIONS) // rig.block_size) + 1
    served = engine(
        workload,
        config,
        rig.model,
        scheduler="chunked",
        num_blocks=num_seqs * blocks + 8,
        capture_sizes=(num_seqs,) if rig.timer.on_gpu else (),
        clock=Clock(skip_idle=True),
    ).run()
    found = served.records.iterations
    decodes = (found["prefill_seqs"] == 0) & (found["decode_seqs"] == num_seqs)
    host_s = found["duration_s"] - found["forward_s"] - found["sample_s"]
    return max(float(host_s[decodes].min()), 0.0)
