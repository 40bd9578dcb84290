"""What a run leaves behind, against a count of every token by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sim.records import IterationLog, Records, RequestLog
from sim.request import Request
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload
from tests.sim.serving import POLICIES, run

BLOCK = 4


def some_load(seed: int = 3, count: int = 30) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        np.cumsum(rng.exponential(0.08, count)),
        rng.integers(1, 30, count),
        rng.integers(1, 25, count),
    )


def served(workload: Workload, scheduler: str, **options: object) -> Records:
    config = EngineConfig(max_num_seqs=8, block_size=BLOCK, enable_prefix_caching=False)
    return run(workload, config, scheduler=scheduler, num_blocks=400, **options)  # type: ignore[arg-type]


def token_times_s(records: Records, request: int) -> np.ndarray:
    """When each token of a request (that was never preempted) came out of the engine."""
    requests, iterations = records.requests, records.iterations
    ends_s = iterations["start_s"] + iterations["duration_s"]
    first_s, last_s = requests["first_token_s"][request], requests["last_token_s"][request]
    decoding = (ends_s > first_s + 1e-9) & (ends_s <= last_s + 1e-9)
    return np.concatenate(([first_s], ends_s[decoding & (iterations["decode_seqs"] > 0)]))


@pytest.mark.parametrize("scheduler", POLICIES)
def test_every_gap_between_two_tokens_is_recorded_once(scheduler: str) -> None:
    workload = some_load()
    records = served(workload, scheduler)
    times = [token_times_s(records, request) for request in range(len(workload))]
    assert [len(one) for one in times] == workload.output_tokens.tolist()
    expected = np.sort(np.concatenate([np.diff(one) for one in times]))
    found = np.sort(np.repeat(records.gaps_s, records.gap_weights.astype(int)))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("scheduler", ["chunked", "orca", "paged"])
def test_iterations_hold_the_contexts_and_blocks_of_those_who_decode(scheduler: str) -> None:
    workload = some_load()
    records = served(workload, scheduler)
    requests, iterations = records.requests, records.iterations
    times = [token_times_s(records, request) for request in range(len(workload))]
    for at, start_s in enumerate(iterations["start_s"]):
        contexts, prompts, decoding = [], [], iterations["decode_seqs"][at] > 0
        end_s = start_s + iterations["duration_s"][at]
        for request, tokens_s in enumerate(times):
            emitted = int((tokens_s <= start_s + 1e-9).sum())
            prompt = int(workload.prompt_tokens[request])
            if 0 < emitted < len(tokens_s):
                contexts.append(prompt + emitted)
            elif not emitted and abs(tokens_s[0] - end_s) < 1e-9:
                prompts.append((prompt, len(tokens_s)))
        if decoding:
            assert iterations["decode_seqs"][at] == len(contexts)
            assert iterations["context_tokens"][at] == sum(contexts)
        assert iterations["prefill_seqs"][at] == len(prompts)
        assert iterations["prefill_tokens"][at] == sum(prompt for prompt, _ in prompts)
        assert iterations["running"][at] == len(contexts) + len(prompts)
        # Those who sit a prefill iteration out have not written their latest token yet.
        stored = [context - (not decoding) for context in contexts] + [p for p, _ in prompts]
        assert iterations["kv_used_tokens"][at] == sum(stored)
        if scheduler == "chunked":
            assert iterations["kv_reserved_tokens"][at] == 0
            held = sum(-(-tokens // BLOCK) for tokens in stored) * BLOCK
            assert iterations["kv_fragmentation_tokens"][at] == held - sum(stored)
            assert iterations["kv_free_tokens"][at] == 400 * BLOCK - held
    assert requests["finished_s"].max() == (
        iterations["start_s"][-1] + iterations["duration_s"][-1]
    )


def test_waiting_counts_who_has_arrived_and_is_not_in_the_batch() -> None:
    workload = Workload(np.array([0.0, 0.0, 0.01, 9.0]), np.full(4, 5), np.full(4, 3))
    config = EngineConfig(max_num_seqs=1, block_size=BLOCK)
    records = run(workload, config, scheduler="orca")
    requests, iterations = records.requests, records.iterations
    for start_s, waiting, running in zip(
        iterations["start_s"], iterations["waiting"], iterations["running"], strict=True
    ):
        arrived = (requests["arrival_s"] <= start_s).sum()
        gone = (requests["finished_s"] <= start_s).sum()
        assert waiting == arrived - gone - running
    assert iterations["waiting"].max() == 2


def test_requests_are_sorted_by_number_however_they_end() -> None:
    log = RequestLog()
    for index in (5, 1, 3):
        log.finish(Request(index, 0.0, 10, 2, 2))
    log.reject(Request(2, 0.0, 10, 2, 2))
    columns = log.requests()
    assert columns["request"].tolist() == [1, 2, 3, 5]
    assert columns["rejected"].tolist() == [False, True, False, False]
    assert columns["rejected"].dtype == bool


def test_a_preemption_has_a_row_from_its_beginning_to_its_end() -> None:
    log, one, other = RequestLog(), Request(4, 0.0, 9, 9, 9), Request(6, 0.0, 9, 9, 9)
    log.preempt(one, 1.0)
    log.preempt(other, 2.0)
    log.resume(other, 3.0)
    log.resume(one, 4.0)
    log.preempt(one, 5.0)
    columns = log.preemptions()
    assert columns["request"].tolist() == [4, 6, 4]
    assert columns["preempted_s"].tolist() == [1.0, 2.0, 5.0]
    assert columns["resumed_s"][:2].tolist() == [4.0, 3.0]
    assert math.isnan(columns["resumed_s"][2]), "it has not come back"


def test_empty_logs_have_empty_columns_of_the_right_types() -> None:
    requests, preemptions = RequestLog().requests(), RequestLog().preemptions()
    assert {len(column) for column in (*requests.values(), *preemptions.values())} == {0}
    assert requests["prompt_tokens"].dtype == np.int64
    iterations, gaps_s, weights = IterationLog().columns(num_blocks=5, block_size=4, gaps=[])
    assert {len(column) for column in iterations.values()} == {0}
    assert len(gaps_s) == len(weights) == 0
    assert iterations["start_s"].dtype == np.float64


def test_gaps_unlike_an_iteration_are_kept_with_their_weights() -> None:
    _, gaps_s, weights = IterationLog().columns(
        num_blocks=5, block_size=4, gaps=[(0.5, 3), (2.0, 1)]
    )
    assert (gaps_s.tolist(), weights.tolist()) == ([0.5, 2.0], [3.0, 1.0])


def test_preempted_tokens_are_not_emitted_twice() -> None:
    workload = some_load(count=40)
    config = EngineConfig(max_num_seqs=8, block_size=BLOCK, max_num_batched_tokens=64)
    records = run(workload, config, scheduler="chunked", num_blocks=20)
    requests, iterations = records.requests, records.iterations
    assert requests["preemptions"].sum() == len(records.preemptions["request"]) > 5
    assert iterations["preempted"].sum() == requests["preemptions"].sum()
    assert iterations["finished"].sum() == len(workload)
    assert iterations["emitted"].sum() == workload.output_tokens.sum()
    assert records.gap_weights.sum() == (workload.output_tokens - 1).sum()
    # A request's gaps add up to the time from its first token to its last.
    total_s = (requests["last_token_s"] - requests["first_token_s"]).sum()
    assert (records.gaps_s * records.gap_weights).sum() == pytest.approx(total_s, rel=1e-9)
