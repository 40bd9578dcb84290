"""Pipeline stages: batches in flight, bubbles, and nothing lost on the way."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.batch import Batch
from sim.engine.device import Stages
from sim.engine.simulation import simulate
from sim.latency.pipeline import PipelineLatency
from sim.latency.protocol import FixedLatency
from sim.metrics import summarize
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import PromptContent, Workload
from tests.sim.serving import (
    POLICIES,
    LinearLatency,
    assert_gaps_add_up,
    assert_same_records,
    engines,
    workloads,
)


def at_once(count: int, output_tokens: int = 1) -> Workload:
    outputs = np.full(count, output_tokens)
    return Workload(
        arrival_s=np.zeros(count),
        prompt_tokens=np.full(count, 10),
        output_tokens=outputs,
        max_tokens=outputs,
    )


def serve(
    workload: Workload,
    latency: PipelineLatency,
    config: EngineConfig | None = None,
    *,
    scheduler: str = "paged",
    num_blocks: int = 4000,
    leap: bool = True,
) -> Records:
    return simulate(
        workload,
        config or EngineConfig(max_num_seqs=1),
        latency,
        scheduler=scheduler,
        num_blocks=num_blocks,
        leap=leap,
        check=True,
    )


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batches", [8, 13, 32])
def test_the_bubble_is_p_minus_1_over_m(stages: int, micro_batches: int) -> None:
    stage_s = 0.1
    records = serve(at_once(micro_batches), PipelineLatency.fixed(stages * stage_s, stages))
    summary = summarize(records)
    assert summary["duration"] == pytest.approx((micro_batches + stages - 1) * stage_s)
    assert summary["pipeline"]["bubble"] == pytest.approx((stages - 1) / micro_batches)
    share = micro_batches / (micro_batches + stages - 1)
    assert summary["pipeline"]["stage_busy_share"] == pytest.approx([share] * stages)


@pytest.mark.parametrize("stages", [2, 4])
def test_fewer_batches_than_stages_leave_stages_idle(stages: int) -> None:
    one = serve(at_once(1, output_tokens=50), PipelineLatency.fixed(0.4, stages))
    summary = summarize(one)
    assert summary["pipeline"]["stage_busy_share"] == pytest.approx([1 / stages] * stages)
    assert summary["mean_tpot_ms"] == pytest.approx(400), "a token still needs the one before"


def test_as_many_batches_in_flight_as_stages_multiply_throughput() -> None:
    """Long decodes of one batch a stage: each stage is always busy, the bubble vanishes."""
    for stages in (1, 2, 4):
        latency = PipelineLatency.fixed(0.4, stages)
        summary = summarize(serve(at_once(8, output_tokens=400), latency))
        assert summary["output_throughput"] == pytest.approx(stages / 0.4, rel=0.01)
        assert summary["mean_itl_ms"] == pytest.approx(400, rel=1e-6)


def test_never_more_batches_in_flight_than_stages() -> None:
    records = serve(at_once(30, output_tokens=7), PipelineLatency.fixed(0.3, 3))
    start_s = records.iterations["start_s"]
    end_s = start_s + records.iterations["duration_s"]
    in_flight = [((start_s <= now_s) & (end_s > now_s + 1e-9)).sum() for now_s in start_s]
    assert max(in_flight) == 3


def test_one_scheduler_fills_a_pipeline_with_what_its_budget_cuts_apart() -> None:
    """vLLM V1: a batch takes all who are ready, so that those who come at once stay together."""
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=8)
    together = serve(at_once(8, 50), PipelineLatency.fixed(0.4, 4), scheduler="chunked")
    assert summarize(together)["pipeline"]["stage_busy_share"] == pytest.approx([0.25] * 4)
    apart = serve(at_once(8, 50), PipelineLatency.fixed(0.4, 4), config, scheduler="chunked")
    assert min(summarize(apart)["pipeline"]["stage_busy_share"]) > 0.9, "ten tokens in two chunks"
    assert (apart.iterations["running"] <= 8).all(), "seats are of all batches in flight"


@settings(max_examples=60, deadline=None)
@given(workload=workloads(), engine=engines(), stages=st.integers(2, 4), ahead=st.booleans())
def test_a_token_is_never_computed_before_the_one_it_needs(
    workload: Workload, engine: tuple[EngineConfig, int], stages: int, ahead: bool
) -> None:
    config, num_blocks = replace(engine[0], async_scheduling=ahead), engine[1]
    latency = linear_stages(stages)
    records = serve(workload, latency, config, scheduler="chunked", num_blocks=num_blocks)
    requests = records.requests
    served = ~requests["rejected"]
    assert records.iterations["emitted"].sum() == workload.output_tokens[served].sum()
    fastest_s = stages * 0.0137
    took_s = requests["last_token_s"][served] - requests["first_token_s"][served]
    assert (took_s >= (workload.output_tokens[served] - 1) * fastest_s * (1 - 1e-9)).all()


def test_who_gives_way_with_a_chunk_in_flight_finds_all_of_its_prompt_that_was_scheduled() -> None:
    content = PromptContent.from_lists([[1] * 3, [2] * 16])
    workload = Workload(np.zeros(2), np.array([3, 16]), np.array([9, 3]), content=content)
    config = EngineConfig(block_size=4, max_num_seqs=2, max_num_batched_tokens=4)
    latency = PipelineLatency.fixed(1.0, 2)
    records = serve(workload, latency, config, scheduler="chunked", num_blocks=5)
    assert records.requests["preemptions"].tolist() == [0, 1]
    # Of the prompt, the block that gave A its room is computed again, and its last token.
    assert records.iterations["prefill_tokens"].sum() <= 3 + 16 + 2 * 4


def test_a_slow_stage_sets_the_pace() -> None:
    uneven = PipelineLatency([LinearLatency(each, 0.0) for each in (0.1, 0.3, 0.2)], label="uneven")
    summary = summarize(serve(at_once(12), uneven))
    assert summary["duration"] == pytest.approx(0.1 + 12 * 0.3 + 0.2, rel=0.01)
    assert summary["pipeline"]["stage_busy_share"][1] > 0.9


def test_batches_follow_each_other_through_stages() -> None:
    device = Stages(Told())
    assert device.run(Batch(), 0.0) == (0.0, 3.5)
    assert device.free_s == 1.0, "of the first stage"
    assert device.run(Batch(), 1.0) == (1.0, 5.5), "waits for the second stage"
    assert device.run(Batch(), 7.0) == (7.0, 10.5)
    assert device.busy_s == [3.0, 6.0]
    assert device.active_s == 5.5 + 3.5


class Told(PipelineLatency):
    """Two stages of one and two seconds, half a second apart."""

    def __init__(self) -> None:
        super().__init__([FixedLatency(1.0), FixedLatency(2.0)], label="told")

    def sends_s(self, batch: Batch) -> list[float]:
        return [0.5]


def linear_stages(stages: int) -> PipelineLatency:
    return PipelineLatency(
        [LinearLatency(0.0137 * (1 + stage % 2), 1.7e-4) for stage in range(stages)], label="test"
    )


@pytest.mark.parametrize("scheduler", POLICIES)
@settings(max_examples=40, deadline=None)
@given(workload=workloads(), engine=engines())
def test_one_stage_is_a_replica(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int]
) -> None:
    config, num_blocks = engine
    piped = serve(workload, linear_stages(1), config, scheduler=scheduler, num_blocks=num_blocks)
    alone = simulate(
        workload, config, LinearLatency(), scheduler=scheduler, num_blocks=num_blocks, leap=False
    )
    assert_same_records(piped, alone)


@pytest.mark.parametrize("scheduler", POLICIES)
@settings(max_examples=40, deadline=None)
@given(workload=workloads(), engine=engines(), stages=st.integers(2, 4))
def test_every_request_ends_once_whatever_the_stages(
    scheduler: str, workload: Workload, engine: tuple[EngineConfig, int], stages: int
) -> None:
    config, num_blocks = engine
    given = {"scheduler": scheduler, "num_blocks": num_blocks * stages}
    records = serve(workload, linear_stages(stages), config, **given)  # type: ignore[arg-type]
    assert_same_records(
        records,
        serve(workload, linear_stages(stages), config, leap=False, **given),  # type: ignore[arg-type]
    )
    requests = records.requests
    assert requests["request"].tolist() == list(range(len(workload)))
    served = ~requests["rejected"]
    emitted = records.iterations["emitted"].sum()
    assert emitted == workload.output_tokens[served].sum()
    assert records.gap_weights.sum() == (workload.output_tokens[served] - 1).sum()
    assert_gaps_add_up(records)
    assert (records.iterations["waiting"] >= 0).all()
    assert set(requests["replica"]) <= {0}
    assert records.stages is not None
    assert (records.stages["busy_s"] <= records.stages["active_s"] + 1e-9).all()


def test_replicas_of_pipelines_serve_side_by_side() -> None:
    records = simulate(
        at_once(24, output_tokens=5),
        EngineConfig(max_num_seqs=2),
        PipelineLatency.fixed(0.2, 2),
        scheduler="chunked",
        num_blocks=100,
        replicas=3,
        check=True,
    )
    assert np.bincount(records.requests["replica"]).tolist() == [8, 8, 8]
    assert summarize(records)["pipeline"]["stages"] == 2
