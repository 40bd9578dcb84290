"""What the tests of several answers a request share: workloads that ask for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from sim.request import BeamSearch
from sim.workload import Workload
from sim.workload.samples import Samples
from tests.sim.serving import workloads


def with_samples(
    workload: Workload, samples: list[list[int]], beam: BeamSearch | None = None
) -> Workload:
    """The same requests, asking for samples of these lengths."""
    counts = np.array([len(lengths) for lengths in samples])
    asked = Samples(counts, np.array([n for lengths in samples for n in lengths]), beam)
    limits = np.maximum(workload.max_tokens, asked.longest)
    return replace(workload, output_tokens=asked.longest, max_tokens=limits, samples=asked)


@st.composite
def sampled_workloads(draw: st.DrawFn, *, beams: bool = True) -> Workload:
    """Requests of one to four samples, of equal or different lengths; sometimes beams."""
    workload = draw(workloads())
    lengths = st.lists(st.one_of(st.just(1), st.integers(1, 40)), min_size=1, max_size=4)
    drawn = [draw(lengths) for _ in range(len(workload))]
    if not beams or not draw(st.booleans()):
        return with_samples(workload, drawn)
    beam = BeamSearch(draw(st.sampled_from([0.0, 0.5, 0.9])), seed=draw(st.integers(0, 5)))
    return with_samples(workload, [[max(row)] * len(row) for row in drawn], beam)
