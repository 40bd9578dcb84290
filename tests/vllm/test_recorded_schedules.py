"""Orcast decides what vLLM decided, step by step: schedules that were recorded from vLLM 0.32.0."""

import pytest

from tests.vllm import recorded
from tests.vllm.compare import orcast_differs
from tests.vllm.workloads import MODES


@pytest.mark.parametrize("mode", MODES)
def test_orcast_schedules_as_vllm_does(mode: str) -> None:
    schedules = recorded.read()[mode]
    differences = [
        f"workload {number}: {said}"
        for number, (workload, schedule) in enumerate(schedules)
        if (said := orcast_differs(workload, schedule)) is not None
    ]
    equal = f"{len(schedules) - len(differences)} of {len(schedules)} are equal"
    assert not differences, "\n".join([equal, *differences[:3]])


def test_schedules_of_every_mode_are_recorded() -> None:
    assert recorded.read().keys() == MODES.keys()
    assert sum(len(schedules) for schedules in recorded.read().values()) >= 300
