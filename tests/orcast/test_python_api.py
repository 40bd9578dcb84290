"""`orcast.simulate`: the command's answer as Python objects."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import orcast
from scenarios.errors import InputError
from tests.sim.serving import assert_same_records


def test_simulate_gives_records_summary_and_the_resolved_scenario() -> None:
    run = orcast.simulate("quickstart", {"workload.num_requests": 50})
    assert run.summary["completed"] == 50
    assert len(run.records.requests["request"]) == 50
    assert run.scenario["workload"]["num_requests"] == 50
    assert run.scenario["engine"]["max_num_seqs"] == 256, "defaults are written out"
    assert run.records.iterations["emitted"].sum() == run.summary["total_output_tokens"]


def test_overrides_take_python_values() -> None:
    run = orcast.simulate(
        "quickstart",
        {
            "name": "naïve 😀: #1",
            "workload.num_requests": np.int64(20),
            "workload.arrivals": {"process": "constant", "request_rate": np.float64(1e-3)},
            "slo.tpot_ms": None,
            "engine.preferred_batch_sizes": [4, 8],
            "engine.scheduler": "dynamic",
            "engine.enable_prefix_caching": True,
        },
    )
    assert run.scenario["name"] == "naïve 😀: #1"
    assert run.scenario["workload"]["arrivals"]["request_rate"] == 1e-3
    assert run.scenario["slo"]["tpot_ms"] is None
    assert run.scenario["engine"]["preferred_batch_sizes"] == [4, 8]
    assert run.summary["completed"] == 20


def test_a_trace_may_be_a_path(tmp_path: Path) -> None:
    trace = tmp_path / "a trace: #1.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    )
    assert (
        orcast.simulate("azure-conversation", {"workload.trace": trace}).summary["completed"] == 1
    )


def test_both_clocks_are_to_be_had() -> None:
    overrides = {"workload.num_requests": 60}
    leapt = orcast.simulate("quickstart", overrides)
    stepped = orcast.simulate("quickstart", overrides, step=True)
    assert (leapt.summary["mode"], stepped.summary["mode"]) == ("leap", "step")
    assert_same_records(leapt.records, stepped.records)


def test_bad_input_is_an_input_error() -> None:
    with pytest.raises(InputError, match="unknown GPU 'h100-sxn'; did you mean 'h100-sxm'"):
        orcast.simulate("quickstart", {"hardware.gpu": "h100-sxn"})
    with pytest.raises(InputError, match=r"--set: workload\.seed: 'x': expected a whole number"):
        orcast.simulate("quickstart", {"workload.seed": "x"})


def test_simulate_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    orcast.simulate("static-vs-continuous")
    assert not list(tmp_path.iterdir())


def test_one_knob_can_be_turned_in_a_loop() -> None:
    def p99_ttft_ms(max_num_seqs: int) -> float:
        overrides = {"engine.max_num_seqs": max_num_seqs, "workload.num_requests": 400}
        figure = orcast.simulate("quickstart", overrides).summary["p99_ttft_ms"]
        assert isinstance(figure, float)
        return figure

    waits = [p99_ttft_ms(seqs) for seqs in (4, 16, 64)]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > 10 * waits[-1], "four rows are too few for this load"


def test_a_scenario_may_be_a_path_a_mapping_or_keywords(tmp_path: Path) -> None:
    named = orcast.simulate("quickstart", {"workload.num_requests": 30})
    whole = dict(named.scenario)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(whole))
    for again in (
        orcast.simulate(whole),
        orcast.simulate(path),
        orcast.simulate(workload={"num_requests": 30}),
    ):
        assert_same_records(named.records, again.records)
    assert whole == named.scenario, "a mapping that is given is left as it is"
    changed = orcast.simulate(whole, model="qwen3-8b", engine={"max_num_seqs": 4})
    assert changed.scenario["model"] == "qwen3-8b"
    assert changed.scenario["engine"]["block_size"] == named.scenario["engine"]["block_size"]
    with pytest.raises(orcast.InputError, match="scenario: model: missing"):
        orcast.simulate({"name": "x", "hardware": {"gpu": "h100"}, "workload": whole["workload"]})


def test_a_notebook_sees_the_verdict_tables_and_figures(tmp_path: Path) -> None:
    name = "<b>x</b>"
    run = orcast.simulate("quickstart", {"workload.num_requests": 30, "name": name})
    assert repr(run).startswith(f"<Forecast of {name}: 30 of 30 requests completed")
    shown = run._repr_html_()
    assert "Meets the SLO" in shown and "&lt;b&gt;x&lt;/b&gt;" in shown and name not in shown
    assert (
        len(run.requests) == 30
        and run.requests["output_tokens"].sum() == (run.summary["total_output_tokens"])
    )
    assert run.iterations["duration_s"].sum() == pytest.approx(run.summary["busy_s"])
    assert {"cdf-ttft", "throughput", "load", "batches", "kv-memory"} <= set(run.figures)
    assert run.figures["load"].layout.title.text
    assert "<h1>" in run.report(tmp_path / "run.html").read_text()


def test_the_module_shows_what_it_is_for() -> None:
    assert dir(orcast) == [
        *("InputError", "__version__", "plan", "simulate", "size", "sweep", "sweep_figure")
    ]
