"""Requests for several answers as columns of a workload."""

from math import inf

import numpy as np
import pytest

from sim.request import BeamSearch
from sim.workload import Workload
from sim.workload.samples import Samples
from sim.workload.source import RequestSource


def some_samples() -> Samples:
    return Samples(np.array([2, 1, 3]), np.array([4, 9, 5, 1, 7, 2]))


def test_columns_are_by_request() -> None:
    samples = some_samples()
    assert samples.longest.tolist() == [9, 5, 7]
    columns = samples.columns(np.array([2, 0]))
    assert columns["samples"].tolist() == [3, 2]
    assert columns["sampled_tokens"].tolist() == [10, 13]


def test_a_slice_of_a_workload_keeps_the_samples_of_its_requests() -> None:
    samples = some_samples()
    workload = Workload(np.arange(3), [8, 8, 8], samples.longest, samples=samples)
    part = workload.slice(1)
    assert part.samples is not None
    assert part.samples.counts.tolist() == [1, 3]
    assert part.samples.output_tokens.tolist() == [5, 1, 7, 2]


@pytest.mark.parametrize("stride", [1, 2])
def test_the_source_hands_each_request_its_own_samples(stride: int) -> None:
    samples = some_samples()
    workload = Workload(np.zeros(3), [8, 8, 8], samples.longest, samples=samples)
    lengths: dict[int, tuple[int, ...] | None] = {}
    for first in range(stride):
        source = RequestSource(
            workload, block_size=4, prefix_caching=False, first=first, stride=stride
        )
        while source.next_arrival_s < inf:
            request = source.take()
            lengths[request.index] = request.group.output_tokens if request.group else None
    assert lengths == {0: (4, 9), 1: None, 2: (1, 7, 2)}


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Samples(np.array([0]), np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match="2 lengths for 3 samples"):
        Samples(np.array([3]), np.array([4, 4]))
    with pytest.raises(ValueError, match="at least 1 token"):
        Samples(np.array([2]), np.array([4, 0]))
    with pytest.raises(ValueError, match="equally long"):
        Samples(np.array([2]), np.array([4, 5]), BeamSearch())
    with pytest.raises(ValueError, match="survival is 2"):
        BeamSearch(survival=2)
    with pytest.raises(ValueError, match="longest sample"):
        Workload(np.zeros(3), [8, 8, 8], [9, 9, 9], samples=some_samples())
