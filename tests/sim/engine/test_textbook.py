"""Answers that textbooks, papers and queueing theory give exactly."""

import numpy as np
import pytest

from sim.engine.simulation import simulate
from sim.latency.protocol import FixedLatency
from sim.schedulers.engine_config import RESERVATIONS, EngineConfig
from sim.workload import Workload, arrivals
from tests.sim.serving import run

# Seven sequences on four rows; S1 to S4 end after 6, 8, 4 and 7 iterations.
SEVEN = Workload(np.zeros(7), np.full(7, 8), np.array([6, 8, 4, 7, 5, 4, 3]))


def timetable(scheduler: str) -> list[tuple[float, float]]:
    records = simulate(
        SEVEN, EngineConfig(max_num_seqs=4), FixedLatency(1.0), scheduler=scheduler, num_blocks=1000
    )
    requests = records.requests
    return list(
        zip(requests["scheduled_s"].tolist(), requests["last_token_s"].tolist(), strict=True)
    )


def test_static_batching_makes_three_sequences_wait_for_the_longest() -> None:
    assert timetable("static") == [(0, 6), (0, 8), (0, 4), (0, 7), (8, 13), (8, 12), (8, 11)]


@pytest.mark.parametrize("scheduler", ["orca", "chunked"])
def test_continuous_batching_gives_freed_rows_to_the_next_at_once(scheduler: str) -> None:
    # S3's row goes to S5 after iteration 4, S1's to S6 after 6, S4's to S7 after 7.
    assert timetable(scheduler) == [(0, 6), (0, 8), (0, 4), (0, 7), (4, 9), (6, 10), (7, 10)]


@pytest.mark.parametrize("scheduler", ["static", "orca", "chunked"])
@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waiting_times_at_batch_size_one_are_pollaczek_khinchines(
    scheduler: str, load: float
) -> None:
    # Service takes `output` iterations of 10 ms, output 1 to 19: an M/G/1 queue.
    count, iteration_s = 60_000, 0.01
    rng = np.random.default_rng(5)
    outputs = rng.integers(1, 19, count, endpoint=True)
    service_s = outputs * iteration_s
    rate_per_s = load / service_s.mean()
    arrival_s = arrivals.poisson(rng, count, rate_per_s=rate_per_s)
    # The formula holds for the rate that the sample really has.
    rate_per_s = count / arrival_s[-1]
    used = rate_per_s * service_s.mean()
    expected_s = rate_per_s * (service_s**2).mean() / (2 * (1 - used))
    records = simulate(
        Workload(arrival_s, np.ones(count, int), outputs),
        EngineConfig(max_num_seqs=1),
        FixedLatency(iteration_s),
        scheduler=scheduler,
        num_blocks=100,
    )
    waited_s = records.requests["scheduled_s"] - records.requests["arrival_s"]
    assert waited_s.mean() == pytest.approx(expected_s, rel=0.06)


def test_one_server_starts_each_request_when_lindley_says() -> None:
    # Every single start, not only their mean: start = max(arrival, end of the one before).
    rng = np.random.default_rng(2)
    outputs = rng.integers(1, 30, 500)
    arrival_s = np.cumsum(rng.exponential(0.2, 500))
    records = simulate(
        Workload(arrival_s, np.ones(500, int), outputs),
        EngineConfig(max_num_seqs=1),
        FixedLatency(0.01),
        scheduler="orca",
        num_blocks=100,
    )
    free_s = 0.0
    for arrived_s, output, start_s in zip(
        arrival_s, outputs, records.requests["scheduled_s"], strict=True
    ):
        assert start_s == pytest.approx(max(arrived_s, free_s), rel=1e-9)
        free_s = start_s + output * 0.01


def test_orca_reserves_for_the_longest_answer_and_never_deadlocks() -> None:
    # Room for one and a half requests as reserved: they go one by one, none is stuck half-way.
    workload = Workload(np.zeros(20), np.full(20, 8), np.full(20, 3), np.full(20, 24))
    records = run(workload, EngineConfig(block_size=4, max_num_seqs=8), scheduler="orca",
                  num_blocks=12)  # fmt: skip
    assert records.iterations["running"].max() == 1
    assert not records.requests["rejected"].any()
    assert records.requests["preemptions"].sum() == 0
    # A paged engine with the same memory serves several at once.
    paged = run(workload, EngineConfig(block_size=4, max_num_seqs=8), scheduler="chunked",
                num_blocks=12)  # fmt: skip
    assert paged.iterations["running"].max() > 1


@pytest.mark.parametrize("reservation", RESERVATIONS)
def test_no_reservation_is_longer_than_a_sequence_can_be(reservation: str) -> None:
    config = EngineConfig(reservation=reservation, max_model_len=2048)
    assert config.reserved_tokens(112, max_tokens=10_000, output_tokens=1900) <= 2048


def test_contiguous_reservation_wastes_most_of_the_cache_and_paging_hardly_any() -> None:
    rng = np.random.default_rng(0)
    outputs = np.clip(rng.lognormal(5.0, 0.8, 400), 1, 1024).astype(int)
    workload = Workload(np.zeros(400), np.full(400, 100), outputs)

    def useful(scheduler: str, reservation: str) -> float:
        config = EngineConfig(reservation=reservation, max_model_len=2048)
        records = simulate(
            workload, config, FixedLatency(0.01), scheduler=scheduler, num_blocks=800
        )
        iterations = records.iterations
        full = iterations["waiting"] > 0  # while requests queue, free memory is a choice
        kinds = {
            kind: iterations[f"kv_{kind}_tokens"][full].sum()
            for kind in ("used", "reserved", "fragmentation", "free")
        }
        return float(kinds["used"] / sum(kinds.values()))

    assert 0.05 < useful("orca", "max_model_len") < 0.4
    assert useful("orca", "max_model_len") < useful("orca", "pow2") < useful("orca", "oracle")
    assert useful("chunked", "oracle") > 0.95
    assert useful("paged", "oracle") > 0.93


def test_a_batch_of_static_rows_is_padded_to_its_longest() -> None:
    workload = Workload(np.zeros(2), np.array([3, 10]), np.array([4, 2]))
    records = run(workload, EngineConfig(block_size=4), scheduler="static", num_blocks=100)
    iterations = records.iterations
    assert iterations["num_tokens"].tolist() == [20, 2, 2, 2]
    assert iterations["context_tokens"].tolist() == [0, 22, 24, 26]
    assert iterations["emitted"].tolist() == [2, 2, 1, 1]
    assert records.requests["last_token_s"].tolist()[1] < records.requests["finished_s"].tolist()[1]


def test_the_dynamic_batcher_waits_for_a_preferred_size_but_no_longer_than_its_delay() -> None:
    config = EngineConfig(max_num_seqs=4, preferred_batch_sizes=(4,), max_queue_delay_s=1.0)
    workload = Workload(np.array([0.0, 0.1, 0.2, 0.3, 5.0, 5.5]), np.full(6, 4), np.full(6, 1))
    records = simulate(workload, config, FixedLatency(0.01), scheduler="dynamic", num_blocks=100)
    assert records.requests["scheduled_s"].tolist() == pytest.approx([0.3, 0.3, 0.3, 0.3, 6.0, 6.0])


def test_swapping_brings_a_sequence_back_where_it_was() -> None:
    workload = Workload(np.zeros(6), np.full(6, 8), np.full(6, 20))
    config = EngineConfig(block_size=4, preemption="swap", swap_blocks=100, max_num_seqs=6)
    swapped = run(workload, config, scheduler="paged", num_blocks=24)
    assert swapped.requests["preemptions"].sum() > 0
    assert swapped.iterations["swap_blocks"].sum() > 0
    # A sequence that was swapped is never prefilled twice.
    assert swapped.iterations["prefill_tokens"].sum() == 6 * 8
    recomputed = run(
        workload,
        EngineConfig(block_size=4, max_num_seqs=6, enable_prefix_caching=False),
        scheduler="paged",
        num_blocks=24,
    )
    assert recomputed.iterations["prefill_tokens"].sum() > 6 * 8
    assert recomputed.iterations["swap_blocks"].sum() == 0


def test_without_host_memory_a_victim_is_recomputed() -> None:
    workload = Workload(np.zeros(6), np.full(6, 8), np.full(6, 20))
    config = EngineConfig(block_size=4, preemption="swap", swap_blocks=0, max_num_seqs=6)
    records = run(workload, config, scheduler="paged", num_blocks=24)
    assert records.requests["preemptions"].sum() > 0
    assert records.iterations["swap_blocks"].sum() == 0


def test_ttft_is_recorded_once_also_across_preemption() -> None:
    workload = Workload(np.zeros(6), np.full(6, 8), np.full(6, 20))
    records = run(
        workload, EngineConfig(block_size=4, max_num_seqs=6), scheduler="chunked", num_blocks=24
    )
    preempted = records.requests["preemptions"] > 0
    assert preempted.any()
    first_s = records.requests["first_token_s"][preempted]
    first_preempted_s = records.preemptions["preempted_s"].min()
    assert (first_s < first_preempted_s).all()


def test_chunked_prefill_never_stalls_a_decode_and_paged_prefill_does() -> None:
    # One answer under way when a long prompt arrives.
    workload = Workload(np.array([0.0, 0.25]), np.array([8, 2000]), np.array([60, 2]))
    config = EngineConfig(max_num_batched_tokens=128)
    longest = {
        scheduler: run(workload, config, scheduler=scheduler).gaps_s.max()
        for scheduler in ("chunked", "paged")
    }
    assert longest["paged"] > 8 * longest["chunked"]


def test_a_closed_loop_keeps_its_concurrency() -> None:
    workload = Workload(np.zeros(40), np.full(40, 8), np.full(40, 5), max_concurrency=3)
    records = simulate(
        workload, EngineConfig(), FixedLatency(0.01), scheduler="chunked", num_blocks=100
    )
    assert (records.iterations["running"] + records.iterations["waiting"]).max() == 3
    assert records.requests["arrival_s"].max() > 0


def test_requests_that_can_never_fit_are_rejected_and_the_rest_is_served() -> None:
    workload = Workload(np.zeros(3), np.array([8, 500, 8]), np.array([4, 4, 4]))
    for scheduler in ("static", "dynamic", "orca", "paged", "chunked"):
        records = run(workload, EngineConfig(), scheduler=scheduler, num_blocks=8)
        assert records.requests["rejected"].tolist() == [False, True, False], scheduler
