"""Recordings of requests are read to the letter, or refused in one line that names the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.recordings.measurement import MeasurementError, read_measurement, simulated
from tests import needs

RECORDING = needs.SHARED / "vllm-rtx4090" / "run"

LINES: list[dict[str, Any]] = [
    {"request_id": "late", "input_toks": 7, "output_toks": 1, "arrival_time": 9e9,
     "queued_ts": 101.0, "scheduled_ts": 101.5, "first_token_ts": 102.0, "last_token_ts": 102.0},
    {"request_id": "early", "input_toks": 5, "output_toks": 3, "arrival_time": 1.0,
     "queued_ts": 100.0, "first_token_ts": 100.25, "last_token_ts": 101.25},
]  # fmt: skip
BENCH: dict[str, Any] = {
    "duration": 4.5,
    "input_lens": [5, 7, 3],
    "output_lens": [3, 1, 0],
    "ttfts": [0.25, 0.5, 0.0],
    "itls": [[0.25, 0.75], [], []],
    "errors": ["", "", "Connection reset"],
}


def recorded(folder: Path, lines: list[Any] = LINES, samples: str | None = None) -> Path:
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    if samples is not None:
        (folder / "timeseries.csv").write_text(samples)
    return folder


def bench(folder: Path, **changes: Any) -> Path:
    file = folder / "result.json"
    result = {key: value for key, value in (BENCH | changes).items() if value is not None}
    file.write_text(json.dumps(result))
    return file


def test_engine_timestamps_count_from_being_queued_and_sort_by_it(tmp_path: Path) -> None:
    found = read_measurement(recorded(tmp_path))
    assert found.request_id is not None and found.request_id.tolist() == ["early", "late"]
    assert found.arrival_s.tolist() == [0.0, 1.0]
    np.testing.assert_allclose(found.ttft_s, [0.25, 1.0])
    np.testing.assert_allclose(found.e2e_s, [1.25, 1.0])
    np.testing.assert_allclose(found.tpot_s, [0.5, np.nan])
    np.testing.assert_allclose(found.scheduled_s, [np.nan, 1.5])
    assert found.prompt_tokens.tolist() == [5, 7]
    assert found.recorded and found.completed.all() and found.samples is None
    assert found.label == str(tmp_path)


def test_a_folder_and_its_file_read_the_same(tmp_path: Path) -> None:
    folder = recorded(tmp_path, samples="t,running,waiting,kv_cache_pct\n1.0,2,0,5\n2.0,1,3,6\n")
    for path in (folder, folder / "requests.jsonl"):
        found = read_measurement(path, "run")
        assert found.samples is not None and found.samples["waiting"].tolist() == [0, 3]
        assert found.finished_s.tolist() == [1.25, 2.0]


def test_request_that_never_finished_has_no_latency(tmp_path: Path) -> None:
    aborted = LINES[0] | {"first_token_ts": None, "last_token_ts": None, "output_toks": 0}
    found = read_measurement(recorded(tmp_path, [aborted, LINES[1]]))
    assert found.completed.tolist() == [True, False]
    assert np.isnan(found.e2e_s[1]) and np.isnan(found.ttft_s[1])


def test_bench_result_adds_its_gaps_up(tmp_path: Path) -> None:
    found = read_measurement(bench(tmp_path))
    np.testing.assert_allclose(found.ttft_s, [0.25, 0.5, np.nan])
    np.testing.assert_allclose(found.e2e_s, [1.25, 0.5, np.nan])
    np.testing.assert_allclose(found.tpot_s[:2], [0.5, np.nan])
    assert found.completed.tolist() == [True, True, False]
    assert not found.has_arrivals and found.duration_s == 4.5


def test_bench_result_with_start_times_has_a_clock(tmp_path: Path) -> None:
    found = read_measurement(bench(tmp_path, start_times=[11.0, 10.0, 12.0], errors=None))
    assert found.has_arrivals
    assert found.arrival_s.tolist() == [0.0, 1.0, 2.0]
    assert found.prompt_tokens.tolist() == [7, 5, 3]
    np.testing.assert_allclose(found.finished_s, [0.5, 2.25, np.nan])


def test_simulated_columns_keep_rejections_and_preemptions() -> None:
    nan = np.nan
    requests = {
        "arrival_s": np.array([3.0, 2.0]),
        "scheduled_s": np.array([3.0, nan]),
        "first_token_s": np.array([3.5, nan]),
        "finished_s": np.array([4.5, nan]),
        "prompt_tokens": np.array([5, 9]),
        "output_tokens": np.array([2, 4]),
    }
    away = {"preempted_s": np.array([3.75]), "resumed_s": np.array([4.0])}
    found = simulated("forecast", requests, away)
    assert found.completed.tolist() == [False, True]
    assert (found.ttft_s[1], found.tpot_s[1], found.finished_s[1]) == (0.5, 1.0, 2.5)
    assert (found.preempted_s[0], found.resumed_s[0]) == (1.75, 2.0)
    assert not found.recorded and found.request_id is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"queued_ts": None}, r"requests\.jsonl:2: queued_ts is None, expected a number"),
        ({"queued_ts": "1"}, r":2: queued_ts is '1'"),
        ({"queued_ts": float("nan")}, r":2: queued_ts is nan"),
        ({"queued_ts": 10**400}, r":2: queued_ts is 1000"),
        ({"queued_ts": 200.0}, r":2: queued_ts 200\.0, first_token_ts 100\.25 .* out of order"),
        ({"last_token_ts": 100.0}, r":2: .* out of order"),
        ({"output_toks": 0}, r":2: output_toks is 0, expected a whole number of at least 1"),
        ({"input_toks": 2.5}, r":2: input_toks is 2\.5"),
        ({"input_toks": True}, r":2: input_toks is True"),
    ],
)
def test_bad_field_is_named_with_its_line(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(MeasurementError, match=words) as refusal:
        read_measurement(recorded(tmp_path, [LINES[0], LINES[1] | change]))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_missing_field_is_called_missing(tmp_path: Path) -> None:
    line = {key: value for key, value in LINES[1].items() if key != "input_toks"}
    with pytest.raises(MeasurementError, match=r":1: input_toks is missing"):
        read_measurement(recorded(tmp_path, [line, LINES[0]]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"itls": None}, "without itls; expected a result of vLLM bench serve"),
        ({"ttfts": [0.25]}, r"3 input_lens, 3 output_lens, 1 ttfts, 3 itls, 3 errors; expected"),
        ({"ttfts": 3}, "0 ttfts, .* expected lists"),
        ({"itls": [[0.1, "x"], [], []]}, "request 0: itls is 'x', expected a number"),
        ({"itls": [0.1, [], []]}, "request 0: itls is None, expected a number"),
        ({"output_lens": [3, -1, 0]}, "request 1: output_lens is -1"),
        ({key: [] for key in BENCH if key != "duration"}, "no request in it"),
        ({"duration": "long"}, "duration is 'long'"),
    ],
)
def test_bad_bench_result_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MeasurementError, match=words):
        read_measurement(bench(tmp_path, **changes))


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ("t,running\n1,2\n", r"timeseries\.csv:1: no column 'waiting', found t, running"),
        ("", r"timeseries\.csv:1: no column 't'"),
        ("t,running,waiting\n1,2,x\n", r"timeseries\.csv:2: waiting is 'x'"),
        ("t,running,waiting\n1,2,3\n2,2\n", r"timeseries\.csv:3: waiting is None"),
        ("t,running,waiting\n1,2,nan\n", r"timeseries\.csv:2: waiting is 'nan'"),
        ("t,running,waiting\n2,2,3\n1,2,3\n", "t must increase"),
    ],
)
def test_bad_counters_are_refused(tmp_path: Path, samples: str, words: str) -> None:
    with pytest.raises(MeasurementError, match=words):
        read_measurement(recorded(tmp_path, samples=samples))


@pytest.mark.parametrize("content", ["", "\n\n", "[1]", "{", "7\n", '{"a": 1}\n{"b": 2}'])
def test_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "requests.jsonl").write_text(content)
    with pytest.raises(MeasurementError, match=r"requests\.jsonl"):
        read_measurement(tmp_path)


def test_absent_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"neither a run folder nor one with a requests"):
        read_measurement(tmp_path)
    with pytest.raises(MeasurementError, match="cannot be read: No such file"):
        read_measurement(tmp_path / "nowhere.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MeasurementError, match="not text"):
        read_measurement(tmp_path / "x.json")


@needs.shared("vllm-rtx4090/run")
def test_recorded_vllm_run_reads_whole() -> None:
    found = read_measurement(RECORDING)
    assert len(found) == 300 and found.completed.all()
    assert found.ttft_s.mean() == pytest.approx(65.4566, rel=1e-5)
    assert found.samples is not None and found.samples["waiting"].max() > 200
