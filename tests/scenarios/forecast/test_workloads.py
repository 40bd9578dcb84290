"""What may be laid over requests, whether drawn or recorded, and what it costs to serve."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_mapping
from sim.latency.beside import BesideLatency
from sim.model.adapters import Adapters, adapter_bytes
from sim.workload import Workload
from tests.orcast.command_line import orcast

FIXED = {"distribution": "fixed"}
PLAIN = {
    "name": "t",
    "model": "llama-3.1-8b",
    "hardware": {"gpu": "h100-sxm"},
    "latency": {"source": "fixed", "iteration_ms": 10},
    "workload": {
        "arrivals": {"process": "poisson", "request_rate": 2},
        "lengths": {"prompt": FIXED | {"tokens": 64}, "output": FIXED | {"tokens": 41}},
        "num_requests": 20,
    },
}


def scenario(*settings: str):
    return load_mapping(PLAIN, settings)[0]


def drawn(*settings: str) -> Workload:
    return deploy(scenario(*settings)).workload


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    rows = "".join(f"{at * 10},{200 + at},{20 + at}\n" for at in range(12))
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    return path


def test_a_limit_below_the_answer_cuts_it(trace):
    assert drawn("workload.max_tokens=10").output_tokens.tolist() == [10] * 20
    assert drawn("workload.max_tokens=99").output_tokens.tolist() == [41] * 20
    assert set(drawn("workload.max_tokens=99").max_tokens.tolist()) == {99}
    cut = drawn(f"workload.trace={trace}", "workload.max_tokens=25")
    assert cut.output_tokens.tolist() == [20, 21, 22, 23, 24, *[25] * 7]
    assert cut.notes == ("max_tokens 25 cuts 6 of 12 answers",)
    several = drawn("workload.max_tokens=10", "workload.samples=3", "engine.scheduler=paged")
    assert several.samples.output_tokens.max() == 10


def test_arrivals_end_where_vllm_s_client_stretches_them_to():
    plain, stretched = drawn(), drawn("workload.arrivals.rescale=true")
    assert stretched.arrival_s[-1] == pytest.approx(20 / 2)
    assert plain.arrival_s / plain.arrival_s[-1] == pytest.approx(stretched.arrival_s / 10)
    with pytest.raises(InputError, match="rescale is of process poisson and gamma"):
        scenario("workload.arrivals={process: constant, request_rate: 2, rescale: true}")


@pytest.mark.parametrize("leap", [True, False])
def test_clients_think_between_an_answer_and_the_next_request(leap):
    asked = scenario("workload.arrivals={process: all_at_once}", "workload.max_concurrency=2",
                     "workload.think_time_s={distribution: fixed, seconds: 3}")  # fmt: skip
    requests = forecast(asked, leap=leap).records.requests
    order = np.argsort(requests["request"])
    arrival_s, finished_s = requests["arrival_s"][order], requests["finished_s"][order]
    assert arrival_s[:2].tolist() == [0.0, 0.0]
    assert arrival_s[2:] == pytest.approx(finished_s[:-2] + 3.0)
    with pytest.raises(InputError, match="think_time_s is of max_concurrency's clients"):
        scenario("workload.think_time_s=3")


def test_images_are_further_prompt_tokens(trace):
    assert set(drawn("workload.images={tokens: 576, per_request: 2}").prompt_tokens) == {64 + 1152}
    some = drawn("workload.images={tokens: 576, share: 0.5}").prompt_tokens
    assert set(some.tolist()) == {64, 640}
    whole = drawn(f"workload.trace={trace}", "workload.images={tokens: 100}")
    assert whole.prompt_tokens.tolist() == list(range(300, 312))


def test_prefixes_are_laid_over_a_trace_that_has_none(trace):
    load = drawn(
        f"workload.trace={trace}", "workload.shared_prefixes={num_prefixes: 1, tokens: 64}"
    )
    first, second = (load.content.block_hashes(row, 16, 200) for row in (0, 1))
    assert first == second
    assert len(first) == 4


def test_sessions_are_laid_over_a_trace_that_has_none(trace):
    load = drawn(f"workload.trace={trace}",
                 "workload.sessions={turns: 3, spread: fixed, turn_gap_s: 0}")  # fmt: skip
    assert load.prompt_tokens.tolist() == list(range(200, 212))  # as recorded
    turns = load.follows.tolist()
    assert turns == [-1, 0, 1, -1, 3, 4, -1, 6, 7, -1, 9, 10]
    assert not load.think_s.any()
    later = drawn(f"workload.trace={trace}",
                  "workload.sessions={turns: 3, spread: fixed, think_time_s: "
                  "{distribution: fixed, seconds: 25}}")  # fmt: skip
    assert later.follows.tolist() == [-1, -1, -1, 0, 1, 2, 3, 4, 5, -1, -1, -1]
    assert later.think_s.max() == 25


def test_what_a_trace_says_itself_nothing_is_laid_over(tmp_path):
    path = tmp_path / "mooncake.jsonl"
    row = {"timestamp": 0, "input_length": 512, "output_length": 9, "hash_ids": [1]}
    path.write_text(json.dumps(row) + "\n")
    for over in (
        "sessions={turns: 2, turn_gap_s: 1}",
        "shared_prefixes={num_prefixes: 1, tokens: 9}",
    ):
        with pytest.raises(InputError, match="says itself what its prompts share"):
            drawn(f"workload.trace={path}", f"workload.{over}")


def test_a_grammar_costs_host_time_in_every_step():
    bare = forecast(scenario()).records
    asked = scenario("workload.structured_output={per_sequence_us: 1000, per_step_us: 500}")
    bound = forecast(asked).records
    stepped = forecast(asked, leap=False).records
    for name, column in bound.requests.items():
        assert np.array_equal(column, stepped.requests[name], equal_nan=column.dtype.kind == "f")
    first = bound.iterations["duration_s"][0] - bare.iterations["duration_s"][0]
    assert first == pytest.approx(1e-3 * bound.iterations["num_seqs"][0] + 5e-4)


CLASSES = "workload.classes=" + json.dumps(
    {
        name: {"share": share, "lengths": PLAIN["workload"]["lengths"]}
        for name, share in (("a", 1), ("b", 1), ("bare", 2))
    }
)
ADAPTED = (CLASSES, "latency={source: roofline}", "workload.adapters={a: 16, b: 64}")


def test_adapters_take_memory_and_time():
    plain, adapted = (deploy(scenario(*settings)) for settings in (ADAPTED[:2], ADAPTED))
    # As published for all matrices of Llama 3 8B at rank 16: 41.9 million parameters.
    assert adapter_bytes(plain.model, 16) == 2 * 41_943_040
    taken = plain.memory.kv_bytes - adapted.memory.kv_bytes
    assert taken == 2 * 4 * 2 * 41_943_040  # a slot each, of the larger rank
    assert adapted.memory.num_gpu_blocks < plain.memory.num_gpu_blocks
    assert any("2 LoRA adapters: 2 slots of rank 64" in note for note in adapted.notes)
    latency = adapted.latency
    while not isinstance(latency, BesideLatency):
        latency = latency.inner
    costs = [latency.extra_s(n) for n in range(200)]
    assert costs[0] == 0.0
    assert all(a < b for a, b in pairwise(costs[:50]))
    # All of them in a large batch: both matrices of each are read, and every layer is grouped.
    assert costs[-1] == pytest.approx(taken / (0.8 * plain.gpu.memory_bytes_per_s) + 32 * 20e-6)
    assert Adapters((0.25, 0.25), 16, 2).among(1) == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("workload.adapters={a: 16}",), "adapters are of classes"),
        ((CLASSES, "workload.adapters={x: 16}"), "adapters.x: no class of that name; a, b, bare"),
        ((*ADAPTED, "engine.max_loras=1"), "2 adapters and engine.max_loras 1"),
        ((*ADAPTED, "engine.max_lora_rank=32"), "rank 64 is above engine.max_lora_rank 32"),
        ((*ADAPTED, "hardware.pipeline_parallel=2"), "over pipeline stages or ranks"),
        ((*ADAPTED, "engine.max_loras=2000"), "slots of adapters of rank 64 take"),
    ],
)
def test_adapters_that_cannot_be_served_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        deploy(scenario(*settings))


def test_the_steady_part_of_a_run_is_found_by_itself(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(PLAIN))
    outcome = orcast("run", path, "--set", "workload.num_requests=200", "--set",
                     "engine.max_num_seqs=1000", "--set", "metrics.warmup_s=auto", "--json",
                     "--out", tmp_path / "run")  # fmt: skip
    assert outcome.status == 0, outcome
    found = json.loads(outcome.stdout)["steady_state"]
    assert found["detected"] is True
    assert 0 <= found["from_s"] < found["until_s"]
