"""Scenario files and ``--set``: what is read is what was written."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import forecast
from scenarios.forecast.requests import draw_workload
from scenarios.schema.load import apply_overrides, load_scenario, parse_scenario
from scenarios.schema.scenario import Scenario
from sim.workload import Workload

MINIMAL: dict[str, Any] = {
    "name": "own",
    "model": "qwen3-0.6b",
    "hardware": {"gpu": "l40s"},
    "workload": {
        "arrivals": {"request_rate": 3},
        "lengths": {
            "prompt": {"distribution": "fixed", "tokens": 20},
            "output": {"distribution": "uniform", "min": 1, "max": 9},
        },
        "num_requests": 50,
    },
}


def loaded(*settings: str, name: str = "quickstart") -> Scenario:
    return load_scenario(name, settings)[0]


def test_what_is_left_out_has_vllms_defaults() -> None:
    engine = parse_scenario(MINIMAL, origin="own").engine
    assert engine.scheduler == "chunked"
    # of an L40S; others are in test_vllm_defaults.py
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (256, 2048)
    assert engine.block_size == 16
    assert engine.gpu_memory_utilization == 0.9
    assert engine.enable_prefix_caching


def test_a_resolved_scenario_is_a_scenario_again() -> None:
    scenario, origin = load_scenario("quickstart", ["workload.num_requests=30"])
    resolved = forecast(scenario, origin=origin).scenario
    again = parse_scenario(yaml.safe_load(yaml.safe_dump(resolved)), origin="again")
    assert again == scenario


def test_settings_override_one_value_each_and_the_last_one_counts() -> None:
    scenario = loaded("engine.max_num_seqs=64", "slo.ttft_ms=100", "engine.max_num_seqs=32")
    assert scenario.engine.max_num_seqs == 32
    assert scenario.engine.max_num_batched_tokens == 8192
    assert (scenario.slo.ttft_ms, scenario.slo.tpot_ms) == (100, 25)


def test_a_setting_can_replace_a_whole_section() -> None:
    scenario = loaded(
        "slo={tpot_ms: 10}", "workload.lengths.prompt={distribution: fixed, tokens: 7}"
    )
    assert (scenario.slo.ttft_ms, scenario.slo.tpot_ms) == (None, 10), "replaced, not merged"
    assert scenario.workload.lengths is not None
    assert scenario.workload.lengths.prompt.tokens == 7
    assert scenario.workload.lengths.prompt.sigma is None


def test_a_setting_reaches_into_a_list() -> None:
    scenario = loaded("cluster.groups[1].replicas=3", "cluster.groups[1].engine.block_size=8",
                      name="disaggregated")  # fmt: skip
    assert [group.replicas for group in scenario.cluster.groups] == [2, 3]
    assert scenario.cluster.groups[1].engine == {"block_size": 8}


@pytest.mark.parametrize(
    ("setting", "words"),
    {
        "cluster.groups[0].replicas=2": r"cluster\.groups has 0 items, counted from 0: no \[0\]",
        "model[0]=2": r"model is 'llama-3.1-8b', not a list",
        "engine[0]=2": r"engine is \{.*\}, not a list",
        "model.name=2": r"model is 'llama-3.1-8b', not a section with keys",
        "engine[x]=2": "expected PATH=VALUE",
        "engine[0=2": "expected PATH=VALUE",
        "engine[-1].x=2": "expected PATH=VALUE",
        ".=2": "expected PATH=VALUE",
    }.items(),
)
def test_a_path_into_what_is_no_list_is_refused(setting: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"--set {re.escape(setting)}: .*{words}"):
        loaded(setting)


def test_a_setting_can_make_a_section_that_the_file_does_not_have() -> None:
    scenario = loaded("cluster.replicas=3", "hardware.link.bandwidth_gb_per_s=5",
                      "hardware.link.latency_us=2")  # fmt: skip
    assert scenario.cluster.replicas == 3
    assert scenario.hardware.link is not None
    assert scenario.hardware.link.bandwidth_gb_per_s == 5


@pytest.mark.parametrize(
    ("text", "value"),
    {
        "5": 5,
        "5.0": 5.0,
        "1e-3": 0.001,
        "2E6": 2e6,
        "true": True,
        "null": None,
        "": None,
        "[1, 2]": [1, 2],
        "{a: b}": {"a": b"b".decode()},
        "a=b": "a=b",
        "'5'": "5",
        "C:\\x": "C:\\x",
    }.items(),
)
def test_values_are_yaml(text: str, value: object) -> None:
    content: dict[str, Any] = {}
    assert apply_overrides(content, [f"some.path={text}"]) == {"some.path"}
    assert content == {"some": {"path": value}}
    assert type(content["some"]["path"]) is type(value)


def test_numbers_with_an_exponent_are_numbers_in_files_too(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    text = yaml.safe_dump(MINIMAL).replace("request_rate: 3", "request_rate: 3e-1")
    path.write_text(text)
    arrivals = load_scenario(str(path))[0].workload.arrivals
    assert arrivals is not None
    assert arrivals.request_rate == 0.3


def test_every_error_says_how_many_more_there_are() -> None:
    wrong = {**MINIMAL, "model": 5, "name": 6, "hardware": {"gpu": "l40s", "cpu": 1}}
    with pytest.raises(InputError, match=r"own: name: 6: expected a string \(and 2 more\)$"):
        parse_scenario(wrong, origin="own")


# -- the workload that is drawn -------------------------------------------------------------------


def drawn(*settings: str, name: str = "quickstart") -> Workload:
    scenario = loaded("workload.num_requests=400", *settings, name=name)
    return draw_workload(scenario.workload, scenario.engine)


def test_the_same_seed_draws_the_same_requests_and_another_seed_others() -> None:
    one, same, other = drawn(), drawn(), drawn("workload.seed=2")
    for column in ("arrival_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(one, column), getattr(same, column))
        assert (getattr(one, column) != getattr(other, column)).any()


def test_changing_the_outputs_leaves_arrivals_and_prompts_as_they_were() -> None:
    one = drawn()
    other = drawn("workload.lengths.output={distribution: uniform, min: 1, max: 900}")
    np.testing.assert_array_equal(one.arrival_s, other.arrival_s)
    np.testing.assert_array_equal(one.prompt_tokens, other.prompt_tokens)
    assert (one.output_tokens != other.output_tokens).any()


def test_changing_the_prompts_or_the_rate_leaves_the_rest_as_it_was() -> None:
    one = drawn()
    other = drawn("workload.lengths.prompt.mean=64")
    np.testing.assert_array_equal(one.arrival_s, other.arrival_s)
    np.testing.assert_array_equal(one.output_tokens, other.output_tokens)
    faster = drawn("workload.arrivals.request_rate=40")
    np.testing.assert_allclose(faster.arrival_s * 2, one.arrival_s, rtol=1e-12)
    np.testing.assert_array_equal(one.output_tokens, faster.output_tokens)


def test_twice_the_requests_begin_with_the_same_ones() -> None:
    one, more = drawn(), drawn("workload.num_requests=800")
    np.testing.assert_array_equal(one.arrival_s, more.arrival_s[:400])
    np.testing.assert_array_equal(one.output_tokens, more.output_tokens[:400])


def test_arrival_processes_have_the_rate_they_are_given() -> None:
    for arrivals in (
        "{process: constant, request_rate: 8}",
        "{process: poisson, request_rate: 8}",
        "{process: gamma, request_rate: 8, burstiness: 0.5}",
    ):
        arrival_s = drawn(f"workload.arrivals={arrivals}", "workload.num_requests=20000").arrival_s
        assert len(arrival_s) / arrival_s[-1] == pytest.approx(8, rel=0.05)
    assert not drawn("workload.arrivals={process: all_at_once}").arrival_s.any()


def test_listed_lengths_are_taken_in_order_over_and_over() -> None:
    outputs = drawn("workload.num_requests=9", name="static-vs-continuous").output_tokens
    assert outputs.tolist() == [6, 8, 4, 7, 5, 4, 3, 6, 8]


def test_clients_ask_for_no_less_than_they_get() -> None:
    workload = drawn("workload.max_tokens=100")
    assert (workload.max_tokens >= 100).all()
    assert (workload.max_tokens >= workload.output_tokens).all()


def test_time_can_be_scaled_and_a_trace_sliced(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{second:02}.5,{100 + second},9" for second in range(40)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    settings = [f"workload.trace={trace}", "workload.start=10", "workload.stop=20"]
    scenario = loaded(*settings, "workload.time_scale=0.5", name="azure-conversation")
    workload = draw_workload(scenario.workload, scenario.engine)
    assert workload.prompt_tokens.tolist() == list(range(110, 120))
    assert workload.arrival_s.tolist() == [second / 2 for second in range(10)]
    scenario = loaded(
        *settings,
        "workload.arrivals={process: constant, request_rate: 4}",
        name="azure-conversation",
    )
    workload = draw_workload(scenario.workload, scenario.engine)
    assert workload.arrival_s.tolist() == [second / 4 for second in range(10)]


def test_shared_prefixes_are_found_in_the_cache() -> None:
    settings = ["workload.num_requests=100", "workload.lengths.prompt.min=300"]
    scenario, origin = load_scenario(
        "quickstart", [*settings, "workload.shared_prefixes={num_prefixes: 1, tokens: 256}"]
    )
    records = forecast(scenario, origin=origin).records
    cached = records.requests["cached_tokens"]
    assert set(cached.tolist()) <= {0, 256}
    assert (cached == 256).sum() > 90


# -- knobs that turn nothing ----------------------------------------------------------------------

IDLE_KNOBS = {
    "orca": "engine.long_prefill_token_threshold=64",
    "static": "engine.enable_prefix_caching=false",
    "chunked": "engine.preemption=swap",
    "dynamic": "engine.watermark=0.5",
    "paged": "engine.reservation=oracle",
}


@pytest.mark.parametrize("scheduler", IDLE_KNOBS)
def test_a_knob_that_a_policy_does_not_have_is_said_to_have_no_effect(scheduler: str) -> None:
    setting = IDLE_KNOBS[scheduler]
    knob = setting.partition("=")[0]
    scenario, origin = load_scenario("quickstart", [f"engine.scheduler={scheduler}", setting])
    notes = [note for note in deploy(scenario, origin=origin).notes if knob in note]
    assert notes, "ignored in silence"
    assert f"{knob} has no effect under scheduler {scheduler} (it belongs to " in notes[0]


def test_every_engine_knob_reaches_the_engine() -> None:
    settings = {
        "max_num_seqs": 33,
        "max_num_batched_tokens": 1000,
        "block_size": 8,
        "max_model_len": 4000,
        "enable_prefix_caching": False,
        "long_prefill_token_threshold": 100,
    }
    scenario, origin = load_scenario(
        "quickstart", [f"engine.{name}={value}".lower() for name, value in settings.items()]
    )
    config = deploy(scenario, origin=origin).config
    assert {name: getattr(config, name) for name in settings} == settings
