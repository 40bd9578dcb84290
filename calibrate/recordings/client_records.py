"""What benchmark clients recorded of each request, and what they say of a whole run.

Where a format keeps latencies stands with the formats of traces (`sim/workload/trace_formats.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.recordings.measurement_types import Measurement, MeasurementError
from sim.workload.trace_entries import Entry, entries, json_object
from sim.workload.trace_file import TraceError, TraceFile
from sim.workload.trace_formats import PER_S, TraceFormat
from sim.workload.trace_results import bench_object
from sim.workload.traces import trace_format

STATISTICS = ("mean", "p50", "p90", "p95", "p99")


def read_records(file: TraceFile, format: TraceFormat, label: str) -> Measurement:
    """The requests of a client's records; those that failed are not completed.

    Raises MeasurementError, one line that names file and line.
    """
    try:
        return _read_records(file, format, label)
    except TraceError as error:
        raise MeasurementError(str(error)) from None


def _read_records(file: TraceFile, format: TraceFormat, label: str) -> Measurement:
    assert format.arrival is not None and format.latencies is not None
    kept = [entry for entry in entries(file, format.rows) if not _beside(entry, format)]
    if not kept:
        raise MeasurementError(f"{file.path}: no request in it")
    times = [entry.time(format.arrival) for entry in kept]
    per_s = PER_S.get(format.arrival.unit, 1.0)
    arrival_s = np.array([(value - times[0]) / per_s for value in times])
    failed = np.array([any(entry.get(key) for key in format.failed) for entry in kept])
    tokens = [
        (0, 0) if bad else (entry.tokens(format.prompt), entry.tokens(format.output))
        for entry, bad in zip(kept, failed.tolist(), strict=True)
    ]
    spans = [
        (math.nan, math.nan) if bad else _spans_s(entry, format)
        for entry, bad in zip(kept, failed.tolist(), strict=True)
    ]
    ttft_s, e2e_s = np.array(spans).T
    output = np.array([one for _, one in tokens], np.int64)
    ids = [entry.get(entry.first(format.request_id)) for entry in kept if format.request_id]
    return Measurement(
        label=label,
        recorded=True,
        arrival_s=arrival_s,
        scheduled_s=np.full(len(kept), np.nan),
        first_token_s=arrival_s + ttft_s,
        finished_s=arrival_s + e2e_s,
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        prompt_tokens=np.array([one for one, _ in tokens], np.int64),
        output_tokens=output,
        completed=~failed & (output > 0) & np.isfinite(e2e_s),
        request_id=np.array([str(name) for name in ids], object)
        if ids and all(name is not None for name in ids)
        else None,
        by_client=True,
    ).in_order_of_arrival()


def _beside(entry: Entry, format: TraceFormat) -> bool:
    return format.left_out is not None and entry.get(format.left_out[0]) == format.left_out[1]


def _spans_s(entry: Entry, format: TraceFormat) -> tuple[float, float]:
    """TTFT and E2E of an answer; NaN where the record does not tell."""
    said = format.latencies
    assert said is not None
    began_s = entry.time_s(format.arrival)
    ttft_s, e2e_s = entry.time_s(said.ttft), entry.time_s(said.e2e)
    if math.isnan(e2e_s):
        e2e_s = entry.time_s(said.end) - began_s
    if said.token_times is not None and math.isnan(ttft_s):
        key = entry.first(said.token_times.keys)
        times = entry.get(key)
        if isinstance(times, list) and times:
            first = Entry(entry.file, entry.line, {f"{key}[0]": times[0]}, entry.place)
            ttft_s = first.number(f"{key}[0]") / PER_S[said.token_times.unit] - began_s
    if e2e_s < 0 or ttft_s < 0 or ttft_s > e2e_s * (1 + 1e-6) + 1e-6:
        raise entry.error(
            f"first token after {ttft_s:g} s, end after {e2e_s:g} s: expected them in this order"
        )
    return ttft_s, e2e_s


@dataclass(frozen=True, slots=True)
class Aggregates:
    """What a tool says of a run as a whole: statistics of latencies in ms, rates in 1/s.

    metrics: of ttft, tpot and e2e, those of STATISTICS that are there.
    """

    label: str
    requests: int | None
    duration_s: float | None
    request_per_s: float | None
    output_per_s: float | None
    metrics: Mapping[str, Mapping[str, float]]


def aggregates_in(path: Path, label: str | None = None) -> Aggregates | None:
    """The aggregates of a file that has no requests; None where it has, or is something else.

    Raises MeasurementError where it has not even a latency.
    """
    if path.is_dir():
        return None
    try:
        file = TraceFile.read(path)
        format, _ = trace_format(file)
    except TraceError:
        return None
    label = label or str(path)
    if format.name == "aggregates":
        entry = Entry(file, 1, json_object(file))
        found = _perf(entry, label) if entry.get("successes") else _profile(entry, label)
    elif format.name == "vllm-bench":
        entry = Entry(file, 1, bench_object(file).row)
        if "ttfts" in entry.row or "itls" in entry.row or "input_lens" in entry.row:
            return None
        found = _bench(entry, label)
    else:
        return None
    if not any(found.metrics.values()):
        raise MeasurementError(f"{path}: neither requests nor a latency in it to compare with")
    return found


def _bench(entry: Entry, label: str) -> Aggregates:
    """A summary of vLLM's or SGLang's client: mean_ttft_ms, p99_tpot_ms, and so on."""
    names = {"ttft": ("ttft",), "tpot": ("tpot",), "e2e": ("e2el", "e2e_latency")}
    metrics = {}
    for metric, known in names.items():
        found: dict[str, float] = {}
        for statistic in STATISTICS:
            words = ("median", "p50") if statistic == "p50" else (statistic,)
            keys = [f"{word}_{name}_ms" for word in words for name in known]
            found |= _value(entry, statistic, keys, 1.0)
        metrics[metric] = found
    completed = _number(entry, "completed")
    return Aggregates(
        label,
        None if completed is None else round(completed),
        _number(entry, "duration"),
        _number(entry, "request_throughput"),
        _number(entry, "output_throughput"),
        metrics,
    )


def _profile(entry: Entry, label: str) -> Aggregates:
    """AIPerf's and genai-perf's export: a section for each metric, with its unit."""
    names = {"ttft": "time_to_first_token", "tpot": "inter_token_latency", "e2e": "request_latency"}
    metrics = {}
    for metric, name in names.items():
        unit = str(entry.get(f"{name}.unit") or "ms")
        if unit not in PER_S:
            raise MeasurementError(f"{entry.file.path}:1: {name}.unit is {unit!r:.40}, expected ms")
        found: dict[str, float] = {}
        for statistic in STATISTICS:
            key = f"{name}.{'avg' if statistic == 'mean' else statistic}"
            found |= _value(entry, statistic, [key], 1e3 / PER_S[unit])
        metrics[metric] = found
    requests, rate = _number(entry, "request_count.avg"), _number(entry, "request_throughput.avg")
    return Aggregates(
        label,
        None if requests is None else round(requests),
        _number(entry, "benchmark_duration.avg"),
        rate,
        _number(entry, "output_token_throughput.avg"),
        metrics,
    )


def _perf(entry: Entry, label: str) -> Aggregates:
    """inference-perf's summary_lifecycle_metrics.json, in s."""
    names = {"ttft": "time_to_first_token", "tpot": "time_per_output_token",
             "e2e": "request_latency"}  # fmt: skip
    metrics = {}
    for metric, name in names.items():
        found: dict[str, float] = {}
        for statistic in STATISTICS:
            words = ("median", "p50") if statistic == "p50" else (statistic,)
            keys = [f"successes.latency.{name}.{word}" for word in words]
            found |= _value(entry, statistic, keys, 1e3)
        metrics[metric] = found
    requests = _number(entry, "successes.count")
    return Aggregates(
        label,
        None if requests is None else round(requests),
        _number(entry, "load_summary.send_duration"),
        _number(entry, "successes.throughput.requests_per_sec"),
        _number(entry, "successes.throughput.output_tokens_per_sec"),
        metrics,
    )


def _value(entry: Entry, statistic: str, keys: list[str], scale: float) -> dict[str, float]:
    """The first of the keys that is there, under the statistic's name."""
    for key in keys:
        found = _number(entry, key)
        if found is not None:
            return {statistic: found * scale}
    return {}


def _number(entry: Entry, key: str) -> float | None:
    value: Any = entry.get(key)
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300
    return float(value) if known else None
