"""A fixed piece of work, timed now and then: is the device as fast as it was?

Clocks are throttled, and a shared processor has neighbours. What a table was measured with and what
an engine ran on can be told apart only by doing the same thing at both times.
"""

from __future__ import annotations

import statistics
import time

import torch

REPEATS = 40
PRODUCTS = 24


def yardstick_us(device: torch.device | str) -> float:
    """Median time of the fixed work on this device, in µs: small products and what lies between.

    Some 50 ms on a CPU; one thread does it there, as calibrations and engines do.
    """
    device = torch.device(device)
    size = 4096 if device.type == "cuda" else 256
    threads = torch.get_num_threads()
    with torch.inference_mode():
        x = torch.ones(16, size, device=device, dtype=torch.bfloat16)
        weight = torch.full((size, size), 1.0 / size, device=device, dtype=torch.bfloat16)
        times_us = []
        try:
            if device.type == "cpu":
                torch.set_num_threads(1)
            for _ in range(REPEATS):
                began_s = time.perf_counter()
                for _ in range(PRODUCTS):
                    x = torch.nn.functional.silu(x @ weight) + 0.5
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times_us.append((time.perf_counter() - began_s) * 1e6)
        finally:
            torch.set_num_threads(threads)
    return statistics.median(times_us)
