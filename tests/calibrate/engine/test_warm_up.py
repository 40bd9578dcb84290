"""What an engine serves before anything is timed."""

from __future__ import annotations

import numpy as np
import pytest

from tests import needs

pytest.importorskip("torch", reason=needs.KERNELS)

from calibrate.engine.warm_up import APART_S, warming_workload


@pytest.mark.parametrize(("longest", "most"), [(1, 1), (100, 20), (8192, 256)])
def test_iterations_of_every_power_of_two_come_apart_from_each_other(longest, most):
    """Of tokens, and of tokens that emit one: kernels are chosen by both."""
    workload = warming_workload(longest, most)
    groups = {
        float(time_s): workload.prompt_tokens[workload.arrival_s == time_s]
        for time_s in np.unique(workload.arrival_s)
    }
    assert np.all(np.diff(list(groups)) == APART_S)
    tokens = {1 << (int(group.sum()) - 1).bit_length() for group in groups.values()}
    emitting = {1 << (len(group) - 1).bit_length() for group in groups.values()}
    for seen, last in ((tokens, longest), (emitting, most)):
        assert seen >= {1 << power for power in range((last - 1).bit_length() + 1)}
    assert max(map(len, groups.values())) == most
    assert workload.prompt_tokens.max() == longest
