"""Workloads are drawn the same every time; where two schedules part is found and said."""

import json
from dataclasses import replace
from random import Random

import pytest

from sim.kv.tables import TableRule
from tests.vllm.schedule import Schedule, Step, difference
from tests.vllm.simulated import simulated
from tests.vllm.workloads import MODES, Workload, draw

ONE = Schedule(
    steps=(
        Step(0, {"0": 5, "1.0": 2}, (), {"0": 0, "1.0": 16}, 9),
        Step(512, {"0": 1}, ("1.0",), {}, 10),
    ),
    first={"0": 512, "1": 512},
    last={"0": 1024, "1": 512},
)


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_draws_one_workload_that_survives_a_file(mode: str) -> None:
    for seed in range(20):
        workload = draw(mode, Random(seed))
        assert workload == draw(mode, Random(seed))
        assert workload == Workload.from_json(json.loads(json.dumps(workload.as_json())))


@pytest.mark.parametrize("mode", MODES)
def test_every_request_can_be_served(mode: str) -> None:
    for seed in range(50):
        workload = draw(mode, Random(seed))
        rules = [TableRule(*table) for table in workload.tables or (("full", 0, 1),)]
        in_flight = workload.max_num_batched_tokens * (1 + workload.async_scheduling)
        assert workload.max_num_batched_tokens >= workload.max_num_seqs
        for one in workload.requests:
            blocks = sum(
                rule.most_blocks(one.final_tokens, workload.block_size, in_flight) * rule.tables
                for rule in rules
            )
            assert blocks < workload.num_gpu_blocks
            assert one.prompt_tokens + one.max_tokens <= workload.max_model_len
            assert one.output_tokens <= one.max_tokens


def test_a_schedule_survives_a_file() -> None:
    assert Schedule.from_json(json.loads(json.dumps(ONE.as_json()))) == ONE


def test_samples_of_a_request_count_together_in_what_vllm_has_said() -> None:
    data = {
        "steps": [
            [0, 0, {"1.0": 2, "1.1": 2}, [], {"1.0": 0, "1.1": 0}, 3],
            [5, 5, {}, ["1.1"], {}, 4],
            [5, 6, {"1.0": 1}, ["1.0"], {}, 4],
        ],
        "first": {"1.0": 6, "1.1": 5},
        "last": {"1.0": 9, "1.1": 12},
    }
    schedule = Schedule.from_vllm(data)
    assert [step.preempted for step in schedule.steps] == [(), ("1.1", "1.0")]
    assert (schedule.first, schedule.last) == ({"1": 5}, {"1": 12})


def test_the_first_difference_is_told_in_words() -> None:
    first, second = ONE.steps
    assert difference(ONE, ONE) is None
    later = replace(ONE, steps=(first, replace(second, start=513)))
    assert difference(ONE, later) == "step 1 (0.500 s): Orcast begins it at 0.501 s"
    other = replace(first, tokens={"0": 7}, free_blocks=8)
    assert difference(ONE, replace(ONE, steps=(other, second))) == (
        "step 0 (0.000 s): vLLM computes {0: 5, 1.0: 2}, Orcast {0: 7}; "
        "vLLM leaves free blocks: 9, Orcast 8"
    )
    assert difference(ONE, replace(ONE, steps=(first,))) == "vLLM takes 2 steps, Orcast 1"
    assert difference(ONE, replace(ONE, last={"0": 1024})) == (
        "request 1: last token at 0.500 s in vLLM, no time in Orcast"
    )


def test_a_lone_request_is_scheduled_as_it_must_be() -> None:
    data = draw("synchronous", Random(0)).as_json()
    alone = {
        "at": 0,
        "prompt": [[100, 70]],
        "output_tokens": 3,
        "max_tokens": 3,
        "priority": 0,
        "samples": 1,
    }
    data |= {
        "requests": [alone],
        "durations": [8, 16],
        "max_num_batched_tokens": 64,
        "long_prefill_token_threshold": 0,
        "block_size": 16,
        "num_gpu_blocks": 11,
    }
    schedule = simulated(Workload.from_json(data))
    assert [step.tokens for step in schedule.steps] == [{"0": 64}, {"0": 6}, {"0": 1}, {"0": 1}]
    assert [step.start for step in schedule.steps] == [0, 8, 24, 32]
    assert [step.free_blocks for step in schedule.steps] == [6, 5, 5, 5]
    assert (schedule.first, schedule.last) == ({"0": 24}, {"0": 48})


def test_a_request_that_comes_during_a_launch_is_in_the_second_batch() -> None:
    data = draw("asynchronous", Random(0)).as_json()
    one = {"prompt": [[100, 5]], "output_tokens": 3, "max_tokens": 3, "priority": 0, "samples": 1}
    data |= {
        "requests": [{"at": 0} | one, {"at": 2} | one],
        "durations": [10],
        "max_num_batched_tokens": 64,
        "block_size": 16,
        "num_gpu_blocks": 11,
    }
    at_once = Workload.from_json(data)
    launched = simulated(replace(at_once, launches=(4,)))
    assert [step.tokens for step in launched.steps[:2]] == [{"0": 5}, {"0": 1, "1": 5}]
    assert [step.tokens for step in simulated(at_once).steps[:2]] == [{"0": 5}, {"0": 1}]
