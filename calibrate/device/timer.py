"""Timing calls on a device: graph replays on a GPU, a monotonic clock anywhere.

A GPU's kernels are captured in a CUDA graph, ten calls at least where they are short, over rotating
inputs that together exceed three L2 caches, and replayed: launches cost nothing then, nothing is
found in a cache that would not be there in service. Eager calls are timed by the wall clock, with
a synchronisation around each: that is the time of a CPU's operations, and on a GPU that of
whatever its host takes to launch them, if that is longer.

A processor works for others too, and they only ever make calls longer. On one thread, time during
which the thread did not run is therefore not counted, and the fastest tenth of the calls tells, not
their median: others still get in the way of caches and of the core's other half.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

Call = Callable[[], object]
Mode = Literal["graph", "eager"]

ROTATIONS = 64  # input sets at most
GRAPH_CALLS = 10  # short calls in one graph, at least
GRAPH_S = 3e-3  # a graph that lasts this long needs no further calls
REPLAYS = 15
WARM_UP = 3
CPU_QUANTILE = 0.1
MEASURE_S = 0.3  # of replays for one point, where that leaves five of them
EAGER_S = 0.03  # of calls for one point on the wall clock, and five calls at least
EAGER_LONG_S = 0.12  # unless five last longer than this; two calls at least


@dataclass(frozen=True, slots=True)
class Timing:
    """Median time of one call (fastest tenth on a CPU); ``spread`` is (p90 − p10) ÷ that."""

    time_us: float
    spread: float
    repeats: int


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device was measured to do: bytes read plus written a second, operations a second."""

    copy_bytes_per_s: float
    matrix_flops_per_s: float


class Timer:
    """Times calls on one device."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds: of this thread where it alone does the work, else of the wall."""
        alone = not self.on_gpu and torch.get_num_threads() == 1
        return time.thread_time if alone else time.perf_counter

    def measure(self, calls: Sequence[Call], *, mode: Mode | None = None) -> Timing:
        """Time of one call. ``mode`` is by default ``graph`` on a GPU, else ``eager``.

        An eager call that returns a float has timed itself: seconds, by `clock`.
        """
        mode = mode or ("graph" if self.on_gpu else "eager")
        with torch.inference_mode():
            return graph_timing(list(calls)) if mode == "graph" else self._eager(list(calls))

    def rotations(self, bytes_per_call: float) -> int:
        """Input sets to rotate over; one on a CPU, whose layers are few and small."""
        return rotations(int(bytes_per_call)) if self.on_gpu else 1

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def _eager(self, calls: list[Call]) -> Timing:
        clock = self.clock
        began = clock()
        own_s = calls[0]()
        self.synchronize()
        first_s = clock() - began
        # A long first call hardly shows that nothing was warm, and counts.
        times_us: list[float] = []
        if first_s > EAGER_LONG_S / 4:
            times_us.append((own_s if isinstance(own_s, float) else first_s) * 1e6)
        collects = gc.isenabled()
        gc.disable()
        try:
            while True:
                call = calls[len(times_us) % len(calls)]
                start = clock()
                own_s = call()
                self.synchronize()
                end = clock()
                times_us.append((own_s if isinstance(own_s, float) else end - start) * 1e6)
                spent, count = end - began, len(times_us)
                if (count >= 5 and spent >= EAGER_S) or (count >= 2 and spent >= EAGER_LONG_S):
                    break
        finally:
            if collects:
                gc.enable()
        return _timing(times_us, 0.5 if self.on_gpu else CPU_QUANTILE)


def rotations(bytes_per_call: int) -> int:
    """Input sets that together exceed three L2 caches of the GPU, at most `ROTATIONS`."""
    l2_bytes: int = torch.cuda.get_device_properties(0).L2_cache_size
    return min(ROTATIONS, max(1, -(-3 * l2_bytes // max(1, bytes_per_call))))


def graph_timing(
    calls: list[Call], *, replays: int | None = None, least_calls: int | None = None
) -> Timing:
    """Time of one call in a captured graph of them.

    By default as many calls and replays as their length asks for; ``least_calls`` and ``replays``
    fix both.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:  # compiles, and lets libraries allocate
            call()
    torch.cuda.synchronize()
    graph, count = _captured(calls, stream), len(calls)
    once_s = _replays_s(graph, 1)[0] / count
    if least_calls is None:
        least_calls = min(ROTATIONS, max(GRAPH_CALLS, round(GRAPH_S / max(once_s, 1e-6))))
        if once_s > GRAPH_S:
            least_calls = 1
    if least_calls > count:
        count = len(calls) * -(-least_calls // len(calls))
        graph = _captured(calls * (count // len(calls)), stream)
    if replays is None:
        replays = max(5, min(REPLAYS, round(MEASURE_S / (once_s * count))))
    return _timing([time_s / count * 1e6 for time_s in _replays_s(graph, replays)])


def _captured(calls: list[Call], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph


def _replays_s(graph: torch.cuda.CUDAGraph, count: int) -> list[float]:
    """Seconds of each of `count` replays, queued behind some that nobody times.

    So every timed one begins on a busy device and what its launch costs the host is not in it.
    """
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    for _ in range(WARM_UP):
        graph.replay()
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    marks[-1].synchronize()
    return [float(a.elapsed_time(b)) / 1e3 for a, b in itertools.pairwise(marks)]


def measure_ceilings(timer: Timer, *, dtype: torch.dtype = torch.bfloat16) -> Ceilings:
    """A device-to-device copy, and a square product of random data.

    2 GiB and 8192³ in ``dtype`` on a GPU; 128 MiB and 1024³ in float32 on a CPU, whose reference
    kernels multiply in float32.
    """
    device = timer.device
    elements, size = (1 << 30, 8192) if timer.on_gpu else (1 << 25, 1024)
    dtype = dtype if timer.on_gpu else torch.float32

    def normal(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device=device, dtype=dtype).normal_()

    source = normal(elements)
    target = torch.zeros_like(source)
    copied = timer.measure([partial(target.copy_, source)])
    moved_bytes = 2 * source.numel() * source.element_size()
    del source, target
    a, b = normal(size, size), normal(size, size)
    product = timer.measure([partial(torch.matmul, a, b)])
    return Ceilings(moved_bytes / copied.time_us * 1e6, 2 * size**3 / product.time_us * 1e6)


def _timing(times_us: list[float], quantile: float = 0.5) -> Timing:
    time_us = float(np.quantile(times_us, quantile))
    low, high = np.quantile(times_us, [0.1, 0.9])
    return Timing(time_us, float(high - low) / time_us if time_us > 0 else 0.0, len(times_us))
