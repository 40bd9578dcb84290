"""What an iteration costs beyond its kernels: where it is added, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from scenarios import library
from sim.batch import Batch, PrefillChunk
from sim.engine.simulation import simulate
from sim.latency.communication import all_gather_s
from sim.latency.protocol import HostOverhead
from sim.latency.refinement import Refinement
from sim.latency.table import TableLatency
from sim.latency.table_data import LatencyTable
from sim.request import Request
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.latency.tables import small_table
from tests.sim.serving import assert_same_records, workloads

MODEL = library.model("llama-3.1-8b")  # 32 layers
HOST = HostOverhead(100e-6, 2e-6, "test")
GAPS = {"decode_gap_us_per_layer": 20.0, "prompt_gap_us_per_layer": {"value": 150.0}}
SOMEONE = Request(0, 0.0, 1, 1, 1)
CONFIG = EngineConfig(max_num_seqs=8, max_num_batched_tokens=64, block_size=16)


def refined_table(constants: dict[str, Any]) -> LatencyTable:
    table = small_table()
    return LatencyTable({**table.meta, "refined": {"constants": constants}}, table.parts)


def model_of(table: LatencyTable, **options: Any) -> TableLatency:
    link = library.gpu("h200-sxm").interconnect
    return TableLatency(
        table, MODEL, interconnect=link, host=HOST, max_num_batched_tokens=2048, **options
    )


def decodes() -> Batch:
    return Batch(num_decodes=4, context_tokens=4000, num_tokens=4, num_emitting=4, num_seqs=4)


def prompt() -> Batch:
    chunk = PrefillChunk(SOMEONE, 100, 0)
    return Batch(prefills=[chunk], num_tokens=100, num_emitting=1, num_seqs=1)


@pytest.mark.parametrize("launch_s", [0.0, 1e-4])
def test_each_layer_of_an_iteration_has_its_gap(launch_s: float) -> None:
    plain = model_of(small_table(), launch_s=launch_s)
    refined = model_of(refined_table(GAPS), launch_s=launch_s)
    for batch, gap_us in ((decodes(), 20.0), (prompt(), 150.0)):
        added_s = refined.iteration_s(batch) - plain.iteration_s(batch)
        assert added_s == pytest.approx(32 * gap_us * 1e-6)
    nothing = Batch(swap_in_blocks=2, num_seqs=0)
    assert refined.iteration_s(nothing) == plain.iteration_s(nothing)


def test_kernels_are_stretched_and_the_host_is_not() -> None:
    plain, slow = (
        model_of(small_table()),
        model_of(refined_table({"kernel_scale": 1.5, "host_us_per_sequence": 30.0})),
    )
    host_s = 100e-6 + 4 * 2e-6
    kernels_s = plain.iteration_s(decodes()) - host_s
    assert slow.iteration_s(decodes()) == pytest.approx(1.5 * kernels_s + 100e-6 + 4 * 30e-6)
    slow.refine(Refinement())
    slow.host = HOST
    assert slow.refinement.is_nothing


def test_sums_over_ranks_take_what_the_link_was_found_to_take() -> None:
    table = small_table()
    two = LatencyTable(table.meta | {"tensor_parallel": 2}, table.parts)
    latency = model_of(two, tensor_parallel=2)
    before_s = latency.iteration_s(decodes())
    latency.refine(Refinement(link_bytes_per_s=14.5e9, link_latency_s=20e-6))
    sums = 65 * (4 * 4096 * 2 / 14.5e9 + 2 * 20e-6)
    sums += float(all_gather_s(np.array(4.0 * 128_256 * 2), 2, latency.interconnect))
    assert latency.iteration_s(decodes()) > before_s
    parts = latency.parts_s(columns([decodes()], [latency.iteration_s(decodes())]))
    assert parts["communication"][0] == pytest.approx(sums, rel=0.01)


def columns(batches: list[Batch], durations_s: list[float]) -> dict[str, np.ndarray]:
    counts = {
        "prefill_seqs": [len(batch.prefills) for batch in batches],
        "num_tokens": [batch.num_tokens for batch in batches],
        "num_emitting": [batch.num_emitting for batch in batches],
        "num_seqs": [batch.num_seqs for batch in batches],
        "swap_blocks": [0 for _ in batches],
    }
    return {name: np.array(values) for name, values in counts.items()} | {
        "duration_s": np.array(durations_s)
    }


def test_parts_and_classes_still_add_up_and_say_how_much_lies_between_kernels() -> None:
    latency = model_of(refined_table(GAPS))
    batches = [decodes(), prompt()]
    durations_s = [latency.iteration_s(batch) for batch in batches]
    found = columns(batches, durations_s)
    parts, classes = latency.parts_s(found), latency.operators_s(found)
    assert parts["gaps"].tolist() == pytest.approx([32 * 20e-6, 32 * 150e-6])
    assert classes["launch"].tolist() == parts["gaps"].tolist()
    for split in (parts, classes):
        np.testing.assert_allclose(sum(split.values()), durations_s, rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(workloads())
def test_a_leap_equals_its_steps_with_gaps_too(workload: Workload) -> None:
    for launch_s in (0.0, 1e-3):
        latency = model_of(refined_table(GAPS), launch_s=launch_s, capture_sizes=(1, 2, 4))
        leapt, stepped = (
            simulate(workload, CONFIG, latency, scheduler="chunked", num_blocks=64, leap=leap)
            for leap in (True, False)
        )
        assert_same_records(leapt, stepped)


@pytest.mark.parametrize(
    ("refined", "says"),
    [
        ([], "expected a mapping with constants"),
        ({"constants": 3}, "expected a mapping with constants"),
        ({"constants": {"kernel_scale": "fast"}}, "kernel_scale is 'fast', expected a value >= 0"),
        ({"constants": {"decode_gap_us_per_layer": {"value": -1}}}, "expected a value >= 0"),
        ({"constants": {"link_us": float("nan")}}, "link_us is nan"),
    ],
)
def test_constants_that_cannot_be_are_refused(refined: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Refinement.of({"refined": refined})
