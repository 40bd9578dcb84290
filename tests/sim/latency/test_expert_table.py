"""A mixture's times of many token counts, and of one."""

from __future__ import annotations

import numpy as np
import pytest

from scenarios import library
from sim.latency.expert_table import ExpertTable
from sim.latency.table_data import Part
from sim.model.expert_routing import ExpertRouting

MODEL = library.model("qwen3-30b-a3b")


@pytest.mark.parametrize("experts", [(128,), (8, 64, 128), (16, 32)])
def test_many_counts_at_once_are_each_by_itself(experts: tuple[int, ...]) -> None:
    tokens, activated = np.meshgrid((1, 16, 512), experts, indexing="ij")
    times_s = 1e-5 + 1e-7 * tokens + 2e-6 * activated
    part = Part({"tokens": tokens.ravel(), "experts": activated.ravel()}, times_s.ravel())
    table = ExpertTable(part, MODEL)
    assert MODEL.moe is not None
    routing = ExpertRouting.uniform(MODEL.moe.num_experts, MODEL.moe.experts_per_token)
    counts = np.array([0, 1, 2, 5, 16, 100, 512, 2000])
    alone = [table.at(n, float(routing.activated(np.array([n]))[0])) for n in counts.tolist()]
    assert table.many(counts) == pytest.approx(alone, rel=1e-12)
    assert [table.many(counts[i : i + 1])[0] for i in range(len(counts))] == list(
        table.many(counts)
    ), "to the last bit, however many are asked for"
