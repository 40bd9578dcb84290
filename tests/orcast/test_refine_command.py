"""`orcast calibrate refine`: constants found again, told, written down, and used from then on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from calibrate.profiles.llmservingsim import import_llmservingsim
from orcast import simulate
from scenarios import library
from sim.latency.protocol import HostOverhead
from sim.latency.refinement import Refinement
from sim.latency.table_folder import read_table, write_table
from tests import needs
from tests.orcast.command_line import orcast, refusal
from tests.sim.latency.tables import META, rows

SETTINGS = {
    "model": "llama-3.1-8b",
    "hardware.gpu": "h200-sxm",
    "engine.max_num_seqs": 64,
    "engine.max_num_batched_tokens": 2048,
    "engine.num_gpu_blocks_override": 4000,
    "frontend.enabled": False,
}
GIVEN = [part for path, value in SETTINGS.items() for part in ("--set", f"{path}={value}")]
TRUE = {"decode_gap_us_per_layer": 60.0, "prompt_gap_us_per_layer": 200.0}
META = META | {"host_overhead_us": {"per_iteration": 0.0, "per_sequence": 0.0}}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_table(tmp_path / "table", META, rows())
    return tmp_path / "table"


def serve(tmp_path: Path, **frontend: float) -> dict[str, np.ndarray]:
    """A run of an engine whose layers have gaps."""
    write_table(tmp_path / "true", META | {"refined": {"constants": TRUE}}, rows())
    rng = np.random.default_rng(2)
    lines = [
        {"input_toks": int(rng.integers(50, 1500)), "output_toks": int(rng.integers(20, 200)),
         "queued_ts": 100.0 + number * 0.12, "request_id": f"r{number}"}
        for number in range(160)
    ]  # fmt: skip
    trace = tmp_path / "asked.jsonl"
    trace.write_text("\n".join(map(json.dumps, lines)))
    settings = SETTINGS | {"latency.table": str(tmp_path / "true"), "workload.trace": str(trace)}
    if frontend:
        settings["frontend.enabled"] = True
        settings |= {f"frontend.{name}": value for name, value in frontend.items()}
    return simulate("validation/vllm-replay", settings).records.requests


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """What the engine noted of every request."""
    found = serve(tmp_path)
    lines = [
        {
            "request_id": f"r{row}",
            "input_toks": int(found["prompt_tokens"][row]),
            "output_toks": int(found["output_tokens"][row]),
            "queued_ts": 100.0 + float(found["arrival_s"][row]),
            "first_token_ts": 100.0 + float(found["first_token_s"][row]),
            "last_token_ts": 100.0 + float(found["last_token_s"][row]),
        }
        for row in range(len(found["arrival_s"]))
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """What a client behind a slower front end saw of the same."""
    found = serve(tmp_path, latency_us=6000, per_output_token_us=80)
    ttft_s = found["first_token_s"] - found["arrival_s"]
    gaps = found["output_tokens"] - 1
    each = (found["finished_s"] - found["first_token_s"]) / gaps
    result = {
        "input_lens": found["prompt_tokens"].tolist(),
        "output_lens": found["output_tokens"].tolist(),
        "start_times": found["arrival_s"].tolist(),
        "ttfts": ttft_s.tolist(),
        "itls": [[float(gap)] * int(count) for gap, count in zip(each, gaps, strict=True)],
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(result))
    return path


def refined(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "meta.yaml").read_text())["refined"]
    return found


def test_the_gaps_of_an_engine_are_found_again_and_the_rest_is_forecast(
    table: Path, recording: Path, tmp_path: Path
) -> None:
    out = tmp_path / "refined"
    told = orcast("calibrate", "refine", table, recording, "--until", "6", "--out", out, *GIVEN)
    assert told.status == 0, told.stderr
    found = refined(out)
    for name, value in TRUE.items():
        assert found["constants"][name]["value"] == pytest.approx(value, rel=0.15)
        assert found["constants"][name]["uncertainty"] < 0.1 * value
    assert (found["requests_fitted"], found["requests_left"]) == (50, 110)
    rest = found["errors"]["rest"]["E2E, each request"]
    assert rest["before"] > 0.1 and rest["after"] < 0.01
    assert "decode_gap_us_per_layer" in told.stdout and "the rest (110)" in told.stdout


def test_a_refined_table_is_used_and_its_gaps_are_told(
    table: Path, recording: Path, tmp_path: Path
) -> None:
    out = tmp_path / "refined"
    assert orcast("calibrate", "refine", table, recording, "--out", out, *GIVEN).status == 0
    settings = SETTINGS | {"workload.trace": str(recording)}
    plain, after, true = (
        simulate("validation/vllm-replay", settings | {"latency.table": str(folder)}).summary
        for folder in (table, out, tmp_path / "true")
    )
    assert after["mean_e2el_ms"] == pytest.approx(true["mean_e2el_ms"], rel=0.005)
    assert plain["mean_e2el_ms"] < 0.95 * true["mean_e2el_ms"]
    run = tmp_path / "run"
    given = [f"latency.table={out}", f"workload.trace={recording}"]
    told = orcast("run", "validation/vllm-replay", "--out", run, *GIVEN,
                  *(part for one in given for part in ("--set", one)))  # fmt: skip
    assert told.status == 0, told.stderr
    assert "Beyond single kernels" in (run / "report.html").read_text()


def test_what_a_client_saw_tells_the_way_to_the_engine_too(
    table: Path, bench: Path, tmp_path: Path
) -> None:
    out = tmp_path / "refined"
    told = orcast("calibrate", "refine", table, bench, "--until", "10", "--out", out, *GIVEN,
                  "--set", "frontend.enabled=true")  # fmt: skip
    assert told.status == 0, told.stderr
    found = refined(out)
    assert found["front_end"]["latency_us"]["value"] == pytest.approx(6000, rel=0.2)
    assert found["errors"]["rest"]["mean TTFT"]["after"] == pytest.approx(0, abs=0.03)
    assert found["errors"]["rest"]["mean E2E"]["after"] == pytest.approx(0, abs=0.01)
    settings = SETTINGS | {"frontend.enabled": True, "workload.trace": str(bench)}
    summary = simulate("validation/vllm-replay", settings | {"latency.table": str(out)}).summary
    assert "each way (fitted to a recording)" in summary["front_end"] or (
        "an output token" in summary["front_end"] and "fitted" in summary["front_end"]
    )


def test_a_scenario_without_a_table_gets_one(recording: Path, tmp_path: Path) -> None:
    scenario = tmp_path / "mine.yaml"
    content = {
        "name": "mine",
        "model": "llama-3.1-8b",
        "hardware": {"gpu": "h200-sxm"},
        "engine": {"generation": "vllm-sync", "num_gpu_blocks_override": 4000},
        "latency": {"source": "roofline"},
        "workload": {"trace": "elsewhere.jsonl"},
    }
    scenario.write_text(yaml.safe_dump(content))
    out = tmp_path / "refined"
    told = orcast("calibrate", "refine", scenario, recording, "--until", "8", "--out", out,
                  "--set", f"workload.trace={recording}")  # fmt: skip
    assert told.status == 0, told.stderr
    assert read_table(out).basis == "analytic"
    found = refined(out)
    assert {"kernel_scale", "host_us_per_iteration"} <= set(found["constants"])
    errors = found["errors"]["rest"]["E2E, each request"]
    assert errors["after"] < 0.05 < errors["before"]


@pytest.mark.parametrize("by", ["requests", "iterations"])
def test_a_host_that_is_assumed_is_fitted_as_a_constant(
    recording: Path, tmp_path: Path, by: str
) -> None:
    """Where nothing hides it: a synchronous engine whose host takes 4 ms, not the assumed 0.5."""
    true = {"host_us_per_iteration": 4000.0, "prompt_gap_us_per_layer": 50.0}
    for folder, more in (("table", {}), ("slow", {"refined": {"constants": true}})):
        write_table(tmp_path / folder, META | {"host_overhead_us": None} | more, rows())
    content: dict[str, Any] = {
        "name": "sync",
        "model": "llama-3.1-8b",
        "hardware": {"gpu": "h200-sxm"},
        "engine": {"generation": "vllm-sync", "num_gpu_blocks_override": 4000},
        "frontend": {"enabled": False},
        "latency": {"table": str(tmp_path / "slow")},
        "workload": {"trace": str(recording)},
    }
    scenario, run, out = (tmp_path / name for name in ("sync.yaml", "run", "out"))
    scenario.write_text(yaml.safe_dump(content))
    assert orcast("run", scenario, "--out", run).status == 0
    if by == "requests":
        found = simulate(str(scenario)).records.requests
        names = {
            "input_toks": "prompt_tokens", "output_toks": "output_tokens",
            "queued_ts": "arrival_s", "first_token_ts": "first_token_s",
            "last_token_ts": "last_token_s",
        }  # fmt: skip
        run = tmp_path / "seen.jsonl"
        lines = [
            {name: found[ours][row].item() for name, ours in names.items()}
            for row in range(len(found["arrival_s"]))
        ]
        run.write_text("\n".join(map(json.dumps, lines)))
    told = orcast("calibrate", "refine", scenario, run, "--until", "12", "--out", out, "--set",
                  f"latency.table={tmp_path / 'table'}", "--set",
                  f"workload.trace={recording}")  # fmt: skip
    assert told.status == 0, told.stderr
    constants = refined(out)["constants"]
    assert "decode_gap_us_per_layer" not in constants
    assert constants["host_us_per_iteration"]["value"] == pytest.approx(4000, rel=0.06)
    assert constants["prompt_gap_us_per_layer"]["value"] == pytest.approx(50, abs=25)
    rest = list(refined(out)["errors"]["rest"].values())[-1]  # TPOT, or all iterations together
    assert abs(rest["after"]) < 0.01 < abs(rest["before"])
    fitted = Refinement.of(read_table(out).meta).host(HostOverhead(1.3e-3, 36e-6, "assumed"))
    assert fitted.source.startswith("fitted to a recording, per iteration")


def test_the_iteration_log_of_vllm_is_enough(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "measured"
    serve(tmp_path)
    given = [f"latency.table={tmp_path / 'true'}", f"workload.trace={tmp_path / 'asked.jsonl'}"]
    assert orcast("run", "validation/vllm-replay", "--out", run, *GIVEN,
                  *(part for one in given for part in ("--set", one))).status == 0  # fmt: skip
    out = tmp_path / "refined"
    told = orcast("calibrate", "refine", table, run, "--until", "5", "--out", out, *GIVEN,
                  "--set", f"workload.trace={tmp_path / 'asked.jsonl'}")  # fmt: skip
    assert told.status == 0, told.stderr
    for name, value in TRUE.items():
        assert refined(out)["constants"][name]["value"] == pytest.approx(value, rel=0.1)
    assert "iterations of the first 5 s" in told.stdout


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--until", "0"], "--until 0: expected a number of seconds above 0"),
        (["--until", "0.3"], "3 completed requests are too few for 2 constants"),
    ],
)
def test_what_cannot_be_refined_on_is_refused_in_one_line(
    table: Path, recording: Path, tmp_path: Path, given: list[str], says: str
) -> None:
    out = tmp_path / "refined"
    said = refusal("calibrate", "refine", table, recording, "--out", out, *given, *GIVEN)
    assert says in said
    assert not out.exists()


def test_a_fixed_time_has_nothing_to_refine(recording: Path, tmp_path: Path) -> None:
    said = refusal("calibrate", "refine", "validation/vllm-replay", recording, "--out",
                   tmp_path / "t", *GIVEN, "--set",
                   "latency={source: fixed, iteration_ms: 10}")  # fmt: skip
    assert "nothing to refine in fixed: 0.01 s per iteration: it is no table" in said


# -- the recordings of real engines -----------------------------------------------------------


def of_recording(name: str, tmp_path: Path, *given: str) -> dict[str, Any]:
    data = needs.SHARED / name
    meta, parts = import_llmservingsim(data / "profile", library.model("llama-3.1-8b"))
    write_table(tmp_path / "profile", meta, parts)
    trace = needs.SHARED / "vllm-rtx4090" / "workload.jsonl"
    told = orcast("calibrate", "refine", tmp_path / "profile", data / "run", "--until", "12",
                  "--out", tmp_path / "refined", "--set", "model=llama-3.1-8b",
                  "--set", "engine.max_num_batched_tokens=2048",
                  "--set", f"workload.trace={trace}", *given)  # fmt: skip
    assert told.status == 0, told.stderr
    found: dict[str, Any] = refined(tmp_path / "refined")["errors"]["rest"]["E2E, each request"]
    return found


@needs.shared("vllm-rtx4090")
@needs.shared("vllm-rtxpro6000")
def test_twelve_seconds_of_an_rtx_pro_6000_bring_the_rest_within_a_percent(tmp_path: Path) -> None:
    rest = of_recording("vllm-rtxpro6000", tmp_path, "--set", "hardware.gpu=rtx-pro-6000",
                        "--set", "engine.max_num_seqs=128")  # fmt: skip
    assert rest["before"] > 0.07 and rest["after"] < 0.01


@needs.tables
@needs.shared("vllm-rtx4090")
@needs.shared("vllm-rtxpro6000")
def test_no_profile_has_to_be_at_hand(tmp_path: Path) -> None:
    """From measured kernels of another version, which are 20 % off on this card by themselves."""
    scenario = tmp_path / "auto.yaml"
    content: dict[str, Any] = {
        "name": "auto",
        "model": "llama-3.1-8b",
        "hardware": {"gpu": "rtx-pro-6000"},
        "engine": {"generation": "vllm", "max_num_seqs": 128, "max_num_batched_tokens": 2048},
        "workload": {"trace": str(needs.SHARED / "vllm-rtx4090" / "workload.jsonl")},
    }
    scenario.write_text(yaml.safe_dump(content))
    told = orcast("calibrate", "refine", scenario, needs.SHARED / "vllm-rtxpro6000" / "run",
                  "--until", "12", "--out", tmp_path / "refined", "--set",
                  f"workload.trace={content['workload']['trace']}")  # fmt: skip
    assert told.status == 0, told.stderr
    rest = refined(tmp_path / "refined")["errors"]["rest"]["E2E, each request"]
    assert rest["before"] > 0.1 and rest["after"] < 0.01


@needs.shared("vllm-rtx4090")
def test_an_rtx_4090_that_its_profile_already_tells_is_left_alone(tmp_path: Path) -> None:
    rest = of_recording("vllm-rtx4090", tmp_path, "--set", "hardware.gpu=rtx-4090",
                        "--set", "engine.num_gpu_blocks_override=2588")  # fmt: skip
    assert rest["before"] == rest["after"] < 0.006
