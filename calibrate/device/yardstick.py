"""A fixed piece of work, timed now and then: is the device as fast as it was, and is it ours alone?

Clocks are throttled, and a shared processor has neighbours. What a table was measured with and what
an engine ran on can be told apart only by doing the same thing at both times; and a slow clock from
a neighbour by the processor's own account of the time that it gave us.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

REPEATS = 40
PRODUCTS = 24


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The fixed work on one device.

    us: median time of it, in µs: of the processor's own account on a CPU, by the clock on a GPU.
    contention: time by the clock over that which the processor gave us: 1 on a machine of one's
        own, 2 on half of one. None on a GPU, whose host waits for it anyway.
    """

    us: float
    contention: float | None


def measure_yardstick(device: torch.device | str) -> Yardstick:
    """Small products and what lies between, again and again.

    Some 50 ms on a CPU; one thread does it there, as calibrations and engines do.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    size = 4096 if on_gpu else 256
    threads = torch.get_num_threads()
    by_clock_us, by_processor_us = [], []
    with torch.inference_mode():
        x = torch.ones(16, size, device=device, dtype=torch.bfloat16)
        weight = torch.full((size, size), 1.0 / size, device=device, dtype=torch.bfloat16)
        try:
            if not on_gpu:
                torch.set_num_threads(1)
            for _ in range(REPEATS):
                began_s, worked_s = time.perf_counter(), time.thread_time()
                for _ in range(PRODUCTS):
                    x = torch.nn.functional.silu(x @ weight) + 0.5
                if on_gpu:
                    torch.cuda.synchronize(device)
                by_processor_us.append((time.thread_time() - worked_s) * 1e6)
                by_clock_us.append((time.perf_counter() - began_s) * 1e6)
        finally:
            torch.set_num_threads(threads)
    if on_gpu:
        return Yardstick(statistics.median(by_clock_us), None)
    # Sums: neighbours take whole slices of time, which only some of the short repeats see.
    return Yardstick(statistics.median(by_processor_us), sum(by_clock_us) / sum(by_processor_us))
