"""Details of a run are told afterwards, agree with its records, and cost it nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from scenarios.forecast.block_tables import BlockTables
from scenarios.forecast.forecast import Forecast, forecast
from scenarios.forecast.run_details import MAX_SAMPLED_ITERATIONS, run_details
from scenarios.schema.load import load_scenario
from sim.latency.protocol import OPERATORS

SMALL = {
    "workload.num_requests": 30,
    "engine.num_gpu_blocks_override": 200,
    "engine.max_num_seqs": 8,
}


def run(scenario: str, settings: dict[str, Any] | None = None) -> Forecast:
    overrides = [f"{path}={value}" for path, value in (settings or {}).items()]
    loaded, origin = load_scenario(scenario, overrides)
    return forecast(loaded, origin=origin)


@pytest.mark.parametrize(
    "scenario",
    ["quickstart", "expert-parallel", "pipeline-parallel", "heterogeneous", "disaggregated",
     "speculation", "kv-offload", "static-vs-continuous", "long-context"],
)  # fmt: skip
def test_classes_of_operations_add_up_to_the_iterations(scenario: str) -> None:
    settings = {} if scenario == "static-vs-continuous" else {"workload.num_requests": 150}
    found = run(scenario, settings)
    details = run_details(found)
    iterations = found.records.iterations
    assert set(details.operators_s) <= set(OPERATORS)
    total = np.sum([seconds for seconds in details.operators_s.values()], axis=0)
    np.testing.assert_allclose(total, iterations["duration_s"], rtol=1e-5)
    parts = found.summary["time_parts_s"]
    assert total.sum(dtype=float) == pytest.approx(sum(parts.values()), rel=1e-5)


def test_work_is_sampled_evenly_from_prefill_mixed_and_decode() -> None:
    found = run("quickstart", {"workload.num_requests": 800})
    iterations = found.records.iterations
    work = run_details(found).work
    assert len(work.rows) == min(MAX_SAMPLED_ITERATIONS, len(iterations["start_s"]))
    assert (np.diff(work.rows) > 0).all()
    assert sum(work.of_each_kind) == len(iterations["start_s"])
    prefills = iterations["prefill_seqs"][work.rows] > 0
    decodes = iterations["decode_seqs"][work.rows] > 0
    assert work.kind.tolist() == np.where(prefills & decodes, 1, np.where(prefills, 0, 2)).tolist()
    roof = work.roofs[0]
    rate = work.flops / iterations["duration_s"][work.rows]
    allowed = np.minimum(
        roof.peak_flops_per_s, roof.memory_bytes_per_s * work.flops / work.moved_bytes
    )
    assert 0.3 < np.median(rate / allowed) < 1.0
    assert (rate <= allowed).all()


def test_groups_have_work_and_roofs_of_their_own() -> None:
    found = run("heterogeneous", {"workload.num_requests": 200})
    work = run_details(found).work
    assert len({roof.gpu for roof in work.roofs}) == 2
    assert set(work.roof.tolist()) == {0, 1}


def held(blocks: BlockTables, engine: int, at: int) -> list[int]:
    return [
        block
        for table, _, block, first, last in blocks.holds
        if blocks.tables[table][0] == engine and first <= at < last
    ]


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        ("quickstart", SMALL),
        ("quickstart", {**SMALL, "engine.scheduler": "orca"}),
        ("quickstart", {**SMALL, "workload.num_requests": 16, "engine.scheduler": "static"}),
        ("preemption", {"workload.num_requests": 30, "engine.num_gpu_blocks_override": 300}),
        ("system-prompt", {"workload.num_requests": 16}),
        ("routers", {"workload.num_requests": 9}),
        ("replica-failure", {"workload.num_requests": 30}),
        ("disaggregated", {"workload.num_requests": 10}),
        ("disaggregated", {"workload.num_requests": 10, "frontend.enabled": False}),
    ],
)  # fmt: skip
def test_spans_of_blocks_give_back_the_records(scenario: str, settings: dict[str, Any]) -> None:
    found = run(scenario, settings)
    blocks = run_details(found).blocks
    assert isinstance(blocks, BlockTables), blocks
    iterations, size = found.records.iterations, blocks.block_size
    for engine, starts_s in enumerate(blocks.starts_s):
        rows = np.flatnonzero(iterations["replica"] == engine)
        assert starts_s.tolist() == iterations["start_s"][rows].tolist()
        fills = [fill for fill in blocks.fills if blocks.tables[fill[0]][0] == engine]
        for at, row in enumerate(rows.tolist()):
            of = {kind: int(iterations[f"kv_{kind}_tokens"][row]) for kind in KINDS}
            here = held(blocks, engine, at)
            assert len(set(here)) * size == of["used"] + of["reserved"] + of["fragmentation"]
            assert (len(here) - len(set(here))) * size == of["shared"]
            now = [fill for fill in fills if fill[1] <= at < fill[2]]
            assert sum(tokens(fill, at) for fill in now) - of["shared"] == of["used"]
            assert sum(spare(fill, at) for fill in now) == of["reserved"]


KINDS = ("used", "reserved", "fragmentation", "shared")


def tokens(fill: Sequence[int], at: int) -> int:
    return fill[3] + fill[5] * (at - fill[1])


def spare(fill: Sequence[int], at: int) -> int:
    return max(fill[4] - fill[5] * (at - fill[1]), 0)


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        ("parallel-sampling", {"workload.num_requests": 4}),
        ("beam-search", {"workload.num_requests": 3}),
        ("speculation", {"workload.num_requests": 10}),
        ("kv-offload", {"workload.num_requests": 7}),
    ],
)  # fmt: skip
def test_sequences_of_one_request_have_tables_of_their_own(
    scenario: str, settings: dict[str, Any]
) -> None:
    found = run(scenario, settings)
    blocks = run_details(found).blocks
    assert isinstance(blocks, BlockTables), blocks
    iterations = found.records.iterations
    slots = iterations["kv_free_tokens"] + 0
    for at in range(0, len(slots), max(1, len(slots) // 50)):
        free = blocks.num_blocks - len(set(held(blocks, 0, at)))
        assert free * blocks.block_size == slots[at]
    samples = {sample for _, _, sample in blocks.tables}
    assert (len(samples) > 1) == (scenario in ("parallel-sampling", "beam-search"))


@pytest.mark.parametrize(
    ("scenario", "settings", "words"),
    [
        ("quickstart", {"workload.num_requests": 65}, "up to 64 requests; this one has 65"),
        ("pipeline-parallel", {"workload.num_requests": 5}, "A pipeline keeps one cache"),
        ("system-prompt", {"workload.num_requests": 40}, "up to 2,000 KV blocks; the requests"),
        ("long-context", {"workload.num_requests": 20}, "up to 3,000 iterations; this one has"),
    ],
)  # fmt: skip
def test_a_run_too_large_for_its_blocks_says_why(
    scenario: str, settings: dict[str, Any], words: str
) -> None:
    blocks = run_details(run(scenario, settings)).blocks
    assert isinstance(blocks, str)
    assert words in blocks


def test_every_part_of_the_latency_says_where_it_comes_from() -> None:
    origins = {one.part: one for one in run_details(run("tensor-parallel", {})).origins}
    assert {"Matrix products", "Attention", "Communication", "Host"} <= set(origins)
    assert not any(one.measured for one in origins.values())
    assert "× 0.81 (hopper kernels)" in origins["Matrix products"].source
    assert "assumed" in origins["Host"].source
    given = {"latency.gemm_efficiency": 0.7, "workload.num_requests": 5}
    origins = {one.part: one for one in run_details(run("quickstart", given)).origins}
    assert "× 0.7 (given)" in origins["Matrix products"].source
