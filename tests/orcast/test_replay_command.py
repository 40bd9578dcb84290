"""`orcast replay` and `orcast trace`, and results of other tools that `orcast compare` reads."""

import gzip
import json

import pytest

from tests.orcast.command_line import orcast

FIXED = ("--set", "latency={source: fixed, iteration_ms: 10}", "--set", "workload.seed=0")
TURNS = [
    {"session_id": "s", "timestamp": 0, "input_length": 64, "output_length": 5},
    {"session_id": "s", "delay": 500, "input_length": 96, "output_length": 5},
]


@pytest.fixture
def turns(tmp_path):
    path = tmp_path / "turns.jsonl.gz"
    path.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in TURNS).encode()))
    return path


def replayed(path, tmp_path, *options):
    outcome = orcast("replay", path, "--out", tmp_path / "run", *FIXED, *options)
    assert outcome.status == 0, outcome
    return outcome


def test_a_replay_says_in_three_lines_what_it_understood_and_runs(turns, tmp_path):
    lines = replayed(turns, tmp_path).stdout.splitlines()
    assert lines[0].startswith("turns.jsonl (mooncake): 2 requests")
    assert lines[1] == "prompts of 80 tokens in the mean (half up to 80, 99 % up to 96, at most " \
        "96); outputs of 5 tokens each"  # fmt: skip
    assert "1 sessions of 2 turns in the mean, 500\xa0ms between" in lines[2]
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_replay_on_a_scenario_clears_its_load(turns, tmp_path):
    out = replayed(turns, tmp_path, "--scenario", "quickstart", "--json")
    summary = json.loads(out.stdout)
    assert summary["completed"] == 2
    assert "turns.jsonl" in out.stderr


def test_a_replay_takes_limits_rate_and_speed(turns, tmp_path):
    out = replayed(turns, tmp_path, "--ttft", "1", "--tpot", "1", "--rate", "5", "--json")
    assert json.loads(out.stdout)["slo_attainment"]["all"] == 0.0
    assert orcast("replay", turns, "--rate", "0").status == 2
    assert orcast("replay", turns, "--column", "prompt").stderr.count("\n") == 1


def test_a_trace_is_described_in_words_json_and_a_page(turns, tmp_path):
    page = tmp_path / "trace.html"
    found = json.loads(orcast("trace", turns, "--json", "--out", page).stdout)
    assert found["requests"] == 2
    assert found["sessions"] == {
        "sessions": 1, "mean_turns": 2.0, "max_turns": 2, "mean_think_s": 0.5,
    }  # fmt: skip
    assert found["notes"] == ["turns.jsonl.gz: no hash_ids: prompts share nothing"]
    assert "turns.jsonl" in page.read_text()
    said = orcast("trace", turns).stdout
    assert "Sessions" in said
    assert "no hash_ids" in said
    assert orcast("trace", tmp_path / "none").status == 2


def test_what_a_cache_that_forgets_nothing_would_find_is_said(tmp_path):
    path = tmp_path / "t.jsonl"
    row = {"timestamp": 0, "input_length": 1024, "output_length": 5}
    rows = [row | {"hash_ids": [1, 2]}, row | {"timestamp": 1000, "hash_ids": [1, 3]}]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    sharing = json.loads(orcast("trace", path, "--json").stdout)["sharing"]
    assert sharing == {"share": 0.25, "block_tokens": 512, "requests": 2}


@pytest.fixture
def run(turns, tmp_path):
    replayed(turns, tmp_path)
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["bench", "aiperf", "guidellm"])
def test_a_run_exported_and_read_back_is_itself(run, tmp_path, name):
    file = tmp_path / "exported.json"
    assert orcast("export", run, name, "--out", file).status == 0
    found = json.loads(orcast("compare", run, file, "--json").stdout)
    assert found["requests"] == 2
    for metric in found["metrics"].values():
        for pair in metric.values():
            assert pair["diff_pct"] == pytest.approx(0.0, abs=1e-9)
    again = json.loads(orcast("trace", file, "--json").stdout)
    assert again["requests"] == 2
    (tmp_path / "other.json").write_text("{}")
    refused = orcast("export", run, name, "--out", tmp_path / "other.json")
    assert refused.status == 2


SUMMARY = {
    "backend": "vllm", "request_rate": 1.0, "duration": 2.0, "completed": 3,
    "total_input_tokens": 30, "total_output_tokens": 30, "request_throughput": 1.0,
    "mean_ttft_ms": 10.0, "p99_tpot_ms": 20.0,
}  # fmt: skip
PROFILE = {
    "request_throughput": {"unit": "requests/sec", "avg": 2.0},
    "request_count": {"unit": "requests", "avg": 3},
    "input_sequence_length": {"unit": "tokens", "avg": 30},
    "output_sequence_length": {"unit": "tokens", "avg": 30},
    "time_to_first_token": {"unit": "s", "avg": 0.01},
    "inter_token_latency": {"unit": "ms", "p99": 20.0},
}
PERF = {
    "load_summary": {"count": 3, "send_duration": 2.0},
    "successes": {
        "count": 3,
        "latency": {
            "time_to_first_token": {"mean": 0.01},
            "time_per_output_token": {"p99": 0.02},
        },
        "throughput": {"requests_per_sec": 1.0},
    },
}


def _series(name, total, **labels):
    return {"metric": {"__name__": f"vllm:{name}", **labels},
            "values": [[1_700_000_000, "0"], [1_700_000_002, str(total)]]}  # fmt: skip


METRICS = {
    "status": "success",
    "data": {"resultType": "matrix", "result": [
        _series("request_success_total", 3),
        _series("time_to_first_token_seconds_sum", 0.03),
        _series("time_to_first_token_seconds_count", 3),
        _series("request_time_per_output_token_seconds_sum", 0.05),
        _series("request_time_per_output_token_seconds_count", 3),
        _series("request_time_per_output_token_seconds_bucket", 3, le="0.0202020202"),
    ]},
}  # fmt: skip


@pytest.mark.parametrize(
    "result", [SUMMARY, PROFILE, PERF, METRICS], ids=["vllm", "aiperf", "perf", "prometheus"]
)
def test_of_aggregates_alone_only_they_are_compared(run, tmp_path, result):
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(result))
    outcome = orcast("compare", run, file, "--json")
    found = json.loads(outcome.stdout)
    assert found["metrics"]["ttft"]["mean"]["b"] == pytest.approx(10.0)
    assert found["metrics"]["tpot"]["p99"]["b"] == pytest.approx(20.0)
    assert found["metrics"]["e2e"]["mean"]["b"] is None
    assert found["per_request"]["e2e_mape_pct"] is None
    assert "aggregates alone" in outcome.stderr
    assert "2 requests completed in A, 3 in B" in outcome.stderr
    assert "aggregates alone" in orcast("compare", run, file).stdout


def test_a_trace_is_no_measurement(run, turns):
    outcome = orcast("compare", run, turns)
    assert outcome.status == 2
    assert "a trace (mooncake), which says what was asked" in outcome.stderr


def test_what_failed_in_a_recording_is_left_out_of_its_replay_and_of_the_comparison(tmp_path):
    result = {
        "backend": "vllm", "request_rate": "inf", "max_concurrency": 2, "duration": 5.0,
        "input_lens": [10, 10, 10], "output_lens": [3, 0, 3], "ttfts": [0.1, 0, 0.1],
        "itls": [[0.01, 0.01], [], [0.01, 0.01]], "errors": ["", "no", ""],
    }  # fmt: skip
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(result))
    replayed(file, tmp_path)
    outcome = orcast("compare", tmp_path / "run", file, "--json")
    assert json.loads(outcome.stdout)["requests"] == 2
    assert "1 of 3 requests failed in B" in outcome.stderr
