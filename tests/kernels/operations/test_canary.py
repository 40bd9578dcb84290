"""The first look at a GPU: every case agrees with its reference, and a wrong one is told."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks import canary

CASES = [name for name in canary.CASES if name not in ("captured decodes", "swap_blocks")]


@pytest.mark.parametrize("name", CASES)
def test_case_agrees_with_its_reference(name, dtype, device, monkeypatch):
    monkeypatch.setattr(canary, "DTYPE", dtype)
    assert canary.worst_deviation(canary.CASES[name], str(device)) <= canary.TOLERANCE


def test_what_is_not_finite_or_far_off_is_found(device):
    right = torch.ones(5, device=device)
    assert canary.deviation(right, right) == 0.0
    wrong, unwritten = right.clone(), right.clone()
    wrong[3], unwritten[3] = 1.1, float("nan")
    assert canary.deviation(wrong, right) > canary.TOLERANCE
    assert canary.deviation(unwritten, right) == float("inf")
