"""Orcast decides what vLLM decided, step by step: schedules that were recorded from vLLM 0.32.0."""

import pytest

from tests.vllm import recorded
from tests.vllm.compare import orcast_differs
from tests.vllm.workloads import MODES

RECORDED = recorded.read()


@pytest.mark.parametrize("mode", MODES)
def test_orcast_schedules_as_vllm_does(mode: str) -> None:
    differences = [
        f"workload {number}: {said}"
        for number, (workload, schedule) in enumerate(RECORDED[mode])
        if (said := orcast_differs(workload, schedule)) is not None
    ]
    total = len(RECORDED[mode])
    equal = f"{total - len(differences)} of {total} are equal"
    assert not differences, "\n".join([equal, *differences[:3]])


def test_there_are_enough_recorded_schedules() -> None:
    assert sum(len(of) for of in RECORDED.values()) >= 300
