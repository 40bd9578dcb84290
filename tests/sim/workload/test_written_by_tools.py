"""Small files that the tools' own code wrote, of the versions in their names.

Those named run are of whole runs against `orcast serve` (``python -m tests.clients --keep``).
"""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from calibrate.recordings.client_records import aggregates_in
from calibrate.recordings.measurement import read_measurement
from sim.workload import read_trace
from sim.workload.trace_file import TraceFile
from sim.workload.traces import trace_format

FILES = Path(__file__).parent / "files"
TTFT_S, TPOT_S = 0.05, 0.01


@pytest.mark.parametrize(
    ("name", "format", "prompts", "outputs", "failed"),
    [
        ("guidellm-0.8.json", "guidellm", [40, 50], [5, 6], 0),
        ("aiperf-0.13.jsonl", "aiperf", [40, 50], [5, 6], 1),
        ("inference-perf-0.7.json", "inference-perf", [40, 41, 50], [5, 1, 6], 1),
        ("inference-perf-0.7-computed.json", "inference-perf", [40, 41, 50], [5, 1, 6], 1),
    ],
)
def test_requests_and_latencies_are_those_that_were_recorded(
    name, format, prompts, outputs, failed
):
    file = FILES / name
    assert trace_format(TraceFile.read(file))[0].name == format
    workload = read_trace(file)
    assert workload.prompt_tokens.tolist() == prompts
    assert workload.output_tokens.tolist() == outputs
    assert workload.arrival_s[-1] == pytest.approx(3.057)
    assert len(workload.notes) == (0 if not failed else 2 if format == "aiperf" else 1)
    measured = read_measurement(file)
    done = measured.completed
    assert done.sum() == len(prompts)
    assert len(measured) == len(prompts) + failed
    more = measured.output_tokens[done] > 1  # inference-perf computes no TTFT of one token
    assert measured.ttft_s[done][more].tolist() == pytest.approx([TTFT_S] * more.sum(), abs=1e-5)
    # GuideLLM's responses end a millisecond after their last token.
    slack = 0.3e-3 if format == "guidellm" else 1e-6
    assert measured.tpot_s[done][more].tolist() == pytest.approx([TPOT_S] * more.sum(), abs=slack)


@pytest.mark.parametrize(
    ("name", "requests", "duration_s"),
    [("aiperf-0.13-summary.json", 2, 4.0), ("inference-perf-0.7-summary.json", 3, 4.25)],
)
def test_aggregates_are_those_that_were_written(name, requests, duration_s):
    found = aggregates_in(FILES / name)
    assert (found.requests, found.duration_s) == (requests, duration_s)
    for statistic in ("mean", "p50", "p99"):
        assert found.metrics["ttft"][statistic] == pytest.approx(TTFT_S * 1e3)
        assert found.metrics["tpot"][statistic] == pytest.approx(TPOT_S * 1e3)
    assert len(read_trace(FILES / name)) == requests


def test_a_packed_recording_is_read_as_it_is(tmp_path):
    path = tmp_path / "profile_export.jsonl.zst"
    with pa.output_stream(path, compression="zstd") as stream:
        stream.write((FILES / "aiperf-0.13.jsonl").read_bytes())
    assert len(read_measurement(path)) == 3
    assert len(read_trace(path)) == 2


def said_by_guidellm() -> dict[str, float]:
    said = json.loads(gzip.decompress((FILES / "guidellm-0.8-run.json.gz").read_bytes()))
    metrics = said["benchmarks"][0]["metrics"]
    return {
        "ttft": metrics["time_to_first_token_ms"]["successful"]["mean"] / 1e3,
        "e2e": metrics["request_latency"]["successful"]["mean"],
    }


def said_by_summary(name: str) -> dict[str, float]:
    found = aggregates_in(FILES / name)
    assert found is not None and found.requests == 10
    return {name: found.metrics[name]["mean"] / 1e3 for name in ("ttft", "tpot", "e2e")}


@pytest.mark.parametrize(
    ("name", "prompt_tokens", "said"),
    [
        ("guidellm-0.8-run.json.gz", 69, said_by_guidellm),
        ("aiperf-0.13-run.jsonl.gz", 64,
         lambda: said_by_summary("aiperf-0.13-run-summary.json.gz")),
        ("inference-perf-0.7-run.json.gz", 64,
         lambda: said_by_summary("inference-perf-0.7-run-summary.json.gz")),
    ],
)  # fmt: skip
def test_a_tools_requests_agree_with_what_it_says_of_them(name, prompt_tokens, said):
    workload = read_trace(FILES / name)
    assert workload.prompt_tokens.tolist() == [prompt_tokens] * 10
    assert workload.output_tokens.tolist() == [32] * 10
    measured = read_measurement(FILES / name)
    assert measured.completed.all()
    found = {"ttft": measured.ttft_s, "tpot": measured.tpot_s, "e2e": measured.e2e_s}
    for metric, mean_s in said().items():
        # inference-perf's responses end a millisecond after their last token, where its TPOT ends.
        near = 0.01 if metric == "tpot" else 1e-3
        assert found[metric].mean() == pytest.approx(mean_s, rel=near), metric


def test_vllms_own_results_agree_with_themselves():
    """`vllm bench serve` 0.32 against `orcast serve`, with and without --save-detailed."""
    detailed = FILES / "vllm-bench-0.32.json"
    said = json.loads(detailed.read_text())
    workload = read_trace(detailed)
    assert workload.prompt_tokens.tolist() == [64] * 12
    assert workload.output_tokens.tolist() == [32] * 12
    starts_s = sorted(said["start_times"])
    assert workload.arrival_s.tolist() == pytest.approx([at - starts_s[0] for at in starts_s])
    measured = read_measurement(detailed)
    assert measured.ttft_s.mean() * 1e3 == pytest.approx(said["mean_ttft_ms"])
    assert measured.tpot_s.mean() * 1e3 == pytest.approx(said["mean_tpot_ms"])
    assert measured.e2e_s.mean() * 1e3 == pytest.approx(said["mean_e2el_ms"])
    assert aggregates_in(detailed) is None
    summary = FILES / "vllm-bench-0.32-summary.json"
    found, said = aggregates_in(summary), json.loads(summary.read_text())
    assert found.requests == 12
    assert found.metrics["ttft"]["p50"] == said["median_ttft_ms"]
    assert found.metrics["e2e"]["p99"] == said["p99_e2el_ms"]
    assert len(read_trace(summary)) == 12
