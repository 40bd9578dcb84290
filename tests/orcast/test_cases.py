"""Small inputs that once failed: what is right is what their README says (recorded data)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import orcast
from calibrate.recordings.measurement import read_measurement
from orcast.forecasted import Forecasted
from sim.workload import read_trace
from tests import needs
from tests.orcast.command_line import orcast as run
from tests.orcast.command_line import refusal

CASES = needs.SHARED / "cases"
pytestmark = needs.shared("cases/README.md")


def forecast(name: str, **settings: Any) -> Forecasted:
    return orcast.simulate(
        str(CASES / name), overrides={key.replace("__", "."): one for key, one in settings.items()}
    )


def served(trace: str, **settings: Any) -> Forecasted:
    """The quickstart's deployment under a trace."""
    overrides = {"workload.trace": str(CASES / trace)}
    overrides |= {key.replace("__", "."): one for key, one in settings.items()}
    return orcast.simulate("quickstart", overrides=overrides)


# -- answers ---------------------------------------------------------------------------------------


def test_the_victim_is_who_came_last_of_the_lowest_priority() -> None:
    found = forecast("priority.yaml")
    requests = found.requests
    junk = (requests["request_class"] == "junk").to_numpy()
    assert requests["preemptions"].to_numpy()[junk].sum() > 0
    assert requests["preemptions"].to_numpy()[~junk].sum() == 0
    ends_s = requests["finished_s"].to_numpy()
    assert ends_s[~junk].max() < ends_s[junk].max()


def test_an_answer_ends_where_it_has_to() -> None:
    assert forecast("fixed.yaml", workload__max_tokens=10).summary["total_output_tokens"] == 200


def test_gaps_of_several_tokens_are_exported_as_vllm_writes_them(tmp_path: Path) -> None:
    technique = "{method: ngram, num_draft_tokens: 3, acceptance: {rate: 1.0}}"
    case, out = CASES / "fixed.yaml", tmp_path / "run"
    assert run("run", case, "--set", f"speculation={technique}", "--out", out).status == 0
    assert run("export", out, "bench", "--out", tmp_path / "bench.json").status == 0
    written = json.loads((tmp_path / "bench.json").read_text())
    summary = json.loads((out / "summary.json").read_text())
    gaps_ms = np.concatenate([np.asarray(one) for one in written["itls"]]) * 1e3
    # A step each, however many tokens come with it; looking for n-grams takes 20 us of it.
    assert gaps_ms == pytest.approx(10.02)
    for name in ("mean_itl_ms", "mean_tpot_ms", "mean_ttft_ms"):
        assert written[name] == pytest.approx(summary[name])


def test_no_turn_comes_before_the_answer_that_it_follows() -> None:
    found = forecast("sessions.yaml", workload__sessions__turn_gap_s=0.05).requests
    assert len(found) == 40
    arrival_s, finished_s = found["arrival_s"].to_numpy(), found["finished_s"].to_numpy()
    # One session after the other at a hundredth of a request a second: two turns each.
    order = np.argsort(arrival_s, kind="stable")
    first, second = order[::2], order[1::2]
    assert arrival_s[second] == pytest.approx(finished_s[first])


def test_the_first_token_of_pools_is_told_in_both_ways() -> None:
    summary = forecast("pd.yaml").summary
    # A prompt of 8,000 tokens takes an iteration; 8,000 × 131,072 B at 1 GB/s 1.05 s; then a step.
    assert summary["mean_ttft_ms"] == pytest.approx(10 + 1048.6 + 10, rel=0.01)
    assert summary["mean_prefill_ttft_ms"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("trace", "last_s", "requests"),
    [("bailian16.jsonl", 58.083, 20), ("mooncake_block64.jsonl", 4.0, 5)],
)
def test_a_traces_own_units_are_told_from_it(trace: str, last_s: float, requests: int) -> None:
    workload = read_trace(CASES / trace)
    assert len(workload) == requests
    assert workload.arrival_s[-1] == pytest.approx(last_s)


@pytest.mark.parametrize("trace", ["mooncake_nohash.jsonl", "lss_no_ids.jsonl"])
def test_prompts_without_content_share_nothing_and_that_is_told(trace: str) -> None:
    (note,) = (text for text in served(trace).summary["warnings"] if trace in text)
    assert note.endswith(": prompts share nothing")


def test_a_later_turn_waits_for_the_answer_before_it() -> None:
    found = served("aiperf_sessions.jsonl").requests
    arrival_s, finished_s = found["arrival_s"].to_numpy(), found["finished_s"].to_numpy()
    for turn in range(0, len(found), 2):
        assert arrival_s[turn + 1] == pytest.approx(finished_s[turn] + 5.0)


def test_identical_prompts_are_found_but_for_what_a_draft_needs() -> None:

    def share(**more: Any) -> float:
        return float(served("identical64.jsonl", **more).summary["prefix_cache_hit_rate"])

    assert share() == pytest.approx(0.375)
    for method in ("eagle", "mtp"):
        drafts = {"method": method, "num_draft_tokens": 1, "acceptance": {"rate": 0.5}}
        assert share(speculation=drafts) == pytest.approx(0.25)


READ = {  # file: whether it holds latencies
    "sharegpt_array.json": False, "wildchat.jsonl": False, "guidellm.json": True,
    "aiperf_profile_export.jsonl": True, "sglang_bench.jsonl": True, "splitwise.csv": False,
    "vidur.csv": False, "vllm_bench_summary.json": False, "vllm_bench_nostart.json": True,
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_other_tools_files_are_traces_and_recordings(name: str) -> None:
    workload = read_trace(CASES / name)
    assert len(workload) > 0 and (np.diff(workload.arrival_s) >= 0).all()
    if READ[name]:
        measured = read_measurement(CASES / name)
        assert np.isfinite(measured.ttft_s[measured.completed]).all()


@pytest.mark.parametrize("name", ["fixed.yaml", "leap-ne-step.yaml", "moe-stranded.yaml"])
def test_step_gives_what_leap_gives(name: str, tmp_path: Path) -> None:
    for folder, more in (("leap", ()), ("step", ("--step",))):
        assert run("run", CASES / name, *more, "--out", tmp_path / folder).status == 0
    leap, step = ((tmp_path / each / "requests.parquet").read_bytes() for each in ("leap", "step"))
    assert leap == step


def test_a_stranded_load_is_told_as_of_a_dense_model(tmp_path: Path) -> None:
    told = run("run", CASES / "moe-stranded.yaml", "--out", tmp_path / "run", "--json")
    assert told.status == 0
    assert json.loads(told.stdout)["completed"] == 0
    few = ("--set", "workload.num_requests=5")
    assert run("run", CASES / "leap-ne-step.yaml", *few, "--out", tmp_path / "few").status == 0


def test_four_bits_a_weight_are_read_from_the_checkpoints_own_words() -> None:
    told = run("show", "model", CASES / "qwen25_7b_gptq.json", "--json")
    assert told.status == 0, told.stderr
    assert "int4" in told.stdout


def test_an_autoscaler_that_looks_all_the_time_comes_to_an_end(tmp_path: Path) -> None:
    told = run("run", CASES / "autoscale-hang.yaml", "--out", tmp_path / "run", "--json")
    assert told.status == 0 and json.loads(told.stdout)["completed"] == 8


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "alias-bomb-in-group.yaml": "alias",
        "keys-20k.yaml": "",
        "timestamp-tag.yaml": "a value does not fit its tag",
        "deep-model.yaml": "deep-model.json",
        "huge-vocab.yaml": "vocab_size",
        "cr-trace.yaml": "cr-trace.csv",
    }.items(),
)
def test_what_cannot_be_is_refused_in_a_line(name: str, words: str, tmp_path: Path) -> None:
    line = refusal("run", CASES / name, "--out", tmp_path / "run")
    assert words in line and name.split(".")[0] in line and len(line) < 300
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("table", ["table-cell-1e300", "table-long-cell", "table-str-layers"])
def test_a_table_of_nonsense_is_refused_in_a_line(table: str, tmp_path: Path) -> None:
    setting = f"latency.table={CASES / table}"
    line = refusal("run", "quickstart", "--set", setting, "--out", tmp_path / "run")
    assert table in line and len(line) < 400


def test_a_pointer_is_not_the_data() -> None:
    path = CASES / "lfs_pointer.csv"
    line = refusal("run", "quickstart", "--set", f"workload.trace={path}")
    assert "a Git LFS pointer, not the data" in line


def test_a_hostile_name_is_shown_as_text(tmp_path: Path) -> None:
    assert run("run", CASES / "ui-title-xss.yaml", "--out", tmp_path / "run").status == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "&lt;script&gt;document" in page
    assert "<script>document" not in page and "<img" not in page
