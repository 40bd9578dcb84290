"""Times of a rank in lockstep: padded to the fullest, experts by the tokens of all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scenarios import library
from sim.batch import Batch
from sim.latency.communication import all_gather_s
from sim.latency.lockstep_roofline import LockstepRoofline
from sim.latency.lockstep_table import LockstepTable
from sim.latency.protocol import HostOverhead
from sim.latency.roofline import RooflineLatency
from sim.latency.table_data import LatencyTable
from sim.model.expert_routing import ExpertRouting
from sim.model.hardware import Interconnect
from sim.model.parallelism import Parallelism
from tests.sim.latency.tables import decode_us, linear_us, moe_table, moe_us
from tests.sim.latency.test_roofline import IDEAL, decodes, records
from tests.sim.latency.test_spread_roofline import H200, even, spread

QWEN = library.model("qwen3-30b-a3b")
FREE = Interconnect(1e30, 0.0, 1e30, 0.0)
LINK = Interconnect(50e9, 2e-6, 50e9, 2e-6)
TWO = Parallelism(expert_parallel=2, data_parallel=2)


def beside(batch: Batch, *, fullest: int, together: int) -> Batch:
    return replace(batch, fullest_tokens=fullest, all_tokens=together)


def test_a_rank_computes_its_experts_for_all_and_the_rest_for_itself() -> None:
    """Where every token goes to every expert, half of them take half the time for all tokens."""
    model = even("mixtral-8x7b")
    settings: dict[str, Any] = {**IDEAL, "interconnect": FREE}
    rank = spread(model, settings=settings, expert_parallel=2, data_parallel=2)
    alone = RooflineLatency(model, H200, **settings)
    assert isinstance(rank, LockstepRoofline)
    mine, everybody = decodes(64, 500), decodes(150, 500)
    experts_s = [
        alone.parts_s(records(alone, [work]))["moe"][0] for work in (mine, decodes(150, 500))
    ]
    expected_s = alone.iteration_s(mine) - experts_s[0] + experts_s[1] / 2
    launched_s = 2 * all_gather_s(np.array([1.0]), 2, FREE)[0] * 32
    found_s = rank.iteration_s(beside(mine, fullest=64, together=everybody.num_tokens))
    assert found_s == pytest.approx(expected_s + launched_s, rel=1e-6)


def test_a_rank_is_padded_to_the_fullest() -> None:
    """As far as graphs are captured: of 1 beside 500 and beside 513 tokens, sizes up to 512."""
    settings = {"capture_sizes": (64, 256, 512), "interconnect": FREE}
    rank = spread("qwen3-30b-a3b", settings=settings, expert_parallel=2, data_parallel=2)
    times_s = {
        fullest: rank.iteration_s(beside(decodes(1, 100), fullest=fullest, together=514))
        for fullest in (1, 500, 513)
    }
    parts = rank._token_parts_s(np.array([1, 500]))["linear"]
    assert times_s[500] - times_s[1] == pytest.approx(parts[1] - parts[0], rel=1e-9)
    assert times_s[513] == times_s[1]


@pytest.mark.parametrize(
    ("fullest", "together", "gathered"), [(500, 600, 2 * 512), (513, 600, 600), (3, 4, 2 * 64)]
)
def test_padding_is_gathered_too(fullest: int, together: int, gathered: int) -> None:
    ranks = [
        spread(
            "qwen3-30b-a3b", expert_parallel=2, data_parallel=2,
            settings={"capture_sizes": (64, 256, 512), "interconnect": link},
        )
        for link in (LINK, FREE)
    ]  # fmt: skip
    works = [beside(decodes(1, 100), fullest=fullest, together=together) for _ in ranks]
    spent_s = ranks[0].iteration_s(works[0]) - ranks[1].iteration_s(works[1])
    moved_s = gathered * 2048 * 2 / 2 / (50e9 * 0.75)
    assert spent_s == pytest.approx(2 * 48 * (2e-6 + moved_s), rel=1e-6)


def test_experts_over_all_gpus_are_whole_whatever_else_is_split() -> None:
    """tp 2 x dp 2 and dp 4 hold as many experts a GPU; only attention and its sums differ."""
    work = beside(decodes(64, 100), fullest=64, together=256)
    shared = [
        spread("qwen3-30b-a3b", expert_parallel=4, data_parallel=dp, tensor_parallel=4 // dp)
        ._shared_parts_s(np.array([work.all_tokens]))["moe"][0]
        for dp in (2, 4)
    ]  # fmt: skip
    assert shared[0] == shared[1] > 0


def test_a_run_of_decodes_is_the_sum_of_its_iterations_to_the_bit() -> None:
    rank = spread("qwen3-30b-a3b", expert_parallel=2, data_parallel=2)
    work, now_s, expected = beside(decodes(7, 300), fullest=9, together=16), 0.125, []
    first = replace(work)
    for _ in range(20):
        now_s += rank.iteration_s(work)
        expected.append(now_s)
        work.context_tokens += 7
    assert rank.run_ends_s(first, 0.125, 20, float("inf")) == expected


def test_parts_of_recorded_iterations_add_up_to_their_durations() -> None:
    rank = spread("qwen3-30b-a3b", expert_parallel=2, data_parallel=2)
    works = [
        beside(decodes(3, 10), fullest=8, together=11),
        beside(decodes(250, 3000), fullest=250, together=400),
    ]
    columns = records(rank, works) | {
        "fullest_tokens": np.array([8, 250]), "all_tokens": np.array([11, 400]),
    }  # fmt: skip
    for split in (rank.parts_s, rank.operators_s):
        parts = split(columns)
        np.testing.assert_allclose(np.sum(list(parts.values()), axis=0), columns["duration_s"])
    assert rank.operators_s(columns)["all_to_all"].min() > 0


# -- measured -------------------------------------------------------------------------------------


def table_rank(table: LatencyTable | None = None, **given: Any) -> LockstepTable:
    settings: dict[str, Any] = {
        "parallelism": TWO, "interconnect": LINK, "link_measured": True, "skew": False,
        "host": HostOverhead(100e-6, 2e-6, "test"), "max_num_batched_tokens": 2048,
        "max_num_seqs": 64, "capture_sizes": (8, 40, 64),
    }  # fmt: skip
    return LockstepTable(table or moe_table(), QWEN, **(settings | given))


def test_a_measured_rank_looks_its_experts_up_at_its_share_of_all_tokens() -> None:
    """Of two ranks with 40 and 24 tokens: attention of 24, products of 40, experts of 64."""
    batch = beside(decodes(24, 200), fullest=40, together=64)
    routing = ExpertRouting.uniform(128, 8)
    fullest = float(routing.slowest_rank_load(np.array([64]), 2)[0])
    activated = 128 * (1 - (1 - 8 / 128) ** 64) / 2
    assert 64 * 8 / 2 < fullest < 64 * 8 / 2 * 1.2
    gathered = 2 * 40 * 2048 * 2
    exchange_us = 2 * 48 * (2e-6 + gathered / 2 / 50e9) * 1e6
    expected_us = (
        linear_us(40)
        + (900.0 + 2.0 * 24)
        + (100.0 + 2.0 * 24)
        + decode_us(24, 200)
        + moe_us(fullest / 8, activated)
        + exchange_us
    )
    assert table_rank().iteration_s(batch) * 1e6 == pytest.approx(expected_us, rel=1e-9)
    assert not batch.extrapolated


def test_parts_of_measured_ranks_add_up() -> None:
    rank = table_rank()
    works = [
        beside(decodes(3, 100), fullest=8, together=11),
        beside(decodes(60, 500), fullest=60, together=100),
    ]
    columns = records(rank, works) | {
        "fullest_tokens": np.array([8, 60]), "all_tokens": np.array([11, 100]),
    }  # fmt: skip
    for split in (rank.parts_s, rank.operators_s):
        parts = split(columns)
        np.testing.assert_allclose(np.sum(list(parts.values()), axis=0), columns["duration_s"])
    attention_us = rank.parts_s(columns)["attention"] * 1e6
    assert attention_us.tolist() == pytest.approx([decode_us(3, 100), decode_us(60, 500)])


def of_shares(table: LatencyTable, ranks: int) -> LatencyTable:
    return LatencyTable({**table.meta, "expert_ranks": ranks}, table.parts)


def test_a_table_of_the_fullest_gpu_is_looked_up_by_the_tokens_of_all_ranks() -> None:
    """Its ranks may be of several GPUs, which sum over themselves and hold whole experts."""
    four = Parallelism(2, expert_parallel=4, data_parallel=2)
    shared = of_shares(moe_table(tensor_parallel=2, experts=(128,)), 4)
    rank = table_rank(shared, tensor_parallel=2, parallelism=four)
    works = [
        beside(decodes(3, 100), fullest=8, together=11),
        beside(decodes(60, 500), fullest=60, together=100),
    ]
    columns = records(rank, works) | {
        "fullest_tokens": np.array([8, 60]), "all_tokens": np.array([11, 100]),
    }  # fmt: skip
    for split in (rank.parts_s, rank.operators_s):
        parts = split(columns)
        np.testing.assert_allclose(np.sum(list(parts.values()), axis=0), columns["duration_s"])
    experts_us = rank.parts_s(columns)["moe"] * 1e6
    assert experts_us.tolist() == pytest.approx([moe_us(11, 128), moe_us(100, 128)])
    classes = rank.operators_s(columns)
    assert classes["all_reduce"].min() > 0 < classes["all_to_all"].min()
    with pytest.raises(ValueError, match="shared out to 8 GPUs"):
        table_rank(of_shares(shared, 8), tensor_parallel=2, parallelism=four)


def test_tables_that_cannot_tell_a_share_are_refused() -> None:
    with pytest.raises(ValueError, match="those of data-parallel ranks are whole"):
        table_rank(
            moe_table(tensor_parallel=2),
            tensor_parallel=2,
            parallelism=Parallelism(2, expert_parallel=4, data_parallel=2),
        )
    with pytest.raises(ValueError, match="one number of experts activated"):
        table_rank(moe_table(experts=(8,)))
    with pytest.raises(ValueError, match="launch: eager"):
        table_rank(launch_s=1e-3)
