"""What happened to every request of a run: recorded by an engine or its client, or forecast.

Four sources, one form:

    requests.jsonl   an engine's own timestamps, a request a line: input_toks, output_toks,
                     queued_ts, first_token_ts, last_token_ts (s), optionally request_id and
                     scheduled_ts; beside it, where recorded, timeseries.csv
    bench result     vLLM's `bench serve --save-result --save-detailed`, or SGLang's client with
                     --output-details: ttfts, itls, input_lens, output_lens (s, tokens),
                     start_times where the version writes them
    client records   of AIPerf, GuideLLM and inference-perf, request by request
    columns          the requests of a simulated run

TTFT and E2E count from the arrival at the engine (`queued_ts`; the client's `arrival_time` is on
another clock), or from the client's sending in a bench result, where E2E = TTFT + sum of the ITLs.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.recordings.client_records import read_records
from calibrate.recordings.measurement_types import Floats as Floats
from calibrate.recordings.measurement_types import Measurement as Measurement
from calibrate.recordings.measurement_types import MeasurementError as MeasurementError
from sim import plain_file
from sim.workload.trace_file import GZIP, ZSTD, TraceError, TraceFile
from sim.workload.trace_formats import TraceFormat
from sim.workload.trace_results import bench_object
from sim.workload.traces import trace_format

Row = dict[str, Any]

SAMPLE_COLUMNS = ("t", "running", "waiting")


def simulated(
    label: str, requests: Mapping[str, NDArray[Any]], preemptions: Mapping[str, NDArray[Any]]
) -> Measurement:
    """The records of a simulated run (columns of its requests and preemptions) as a measurement."""
    arrival_s, scheduled_s, first_s, finished_s = (
        np.asarray(requests[name], np.float64)
        for name in ("arrival_s", "scheduled_s", "first_token_s", "finished_s")
    )
    ids = requests.get("request_id")
    return Measurement(
        label=label,
        recorded=False,
        arrival_s=arrival_s,
        scheduled_s=scheduled_s,
        first_token_s=first_s,
        finished_s=finished_s,
        ttft_s=first_s - arrival_s,
        e2e_s=finished_s - arrival_s,
        prompt_tokens=np.asarray(requests["prompt_tokens"], np.int64),
        output_tokens=np.asarray(requests["output_tokens"], np.int64),
        completed=np.isfinite(finished_s) & np.isfinite(first_s),
        request_id=None if ids is None else np.asarray(ids, object),
        preempted_s=np.asarray(preemptions["preempted_s"], np.float64),
        resumed_s=np.asarray(preemptions["resumed_s"], np.float64),
    ).in_order_of_arrival()


def read_measurement(path: Path, label: str | None = None) -> Measurement:
    """Read a recording: a folder with requests.jsonl, such a file, or a bench result.

    Raises MeasurementError in one line that names file, line and field.
    """
    file = path / "requests.jsonl" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise MeasurementError(f"{path}: neither a run folder nor one with a requests.jsonl")
    text = _text_of(file)
    label = label or str(path)
    known = _known_format(TraceFile(file, text))
    if known is not None:
        return read_records(TraceFile(file, text), known, label)
    result = _bench_result(file, text)
    if result is not None:
        return _read_bench(file, result, label)
    found = _read_lines(file, text, label)
    sampled = file.with_name("timeseries.csv")
    return replace(found, samples=_read_samples(sampled)) if sampled.is_file() else found


def _text_of(file: Path) -> str:
    try:
        data = plain_file.read_bytes(file)
        if data[:2] == GZIP or data[:4] == ZSTD:
            return TraceFile.of_bytes(file, data).text
        return data.decode("utf-8")
    except TraceError as error:
        raise MeasurementError(str(error)) from None
    except UnicodeDecodeError:
        raise MeasurementError(f"{file}: not text, expected JSON or a JSON object a line") from None
    except OSError as error:
        raise MeasurementError(f"{file}: cannot be read: {error.strerror}") from None


def _known_format(file: TraceFile) -> TraceFormat | None:
    """The format of a client's records; None for those that are read here, or none at all.

    MeasurementError for a trace that has no latencies.
    """
    try:
        format, _ = trace_format(file)
    except TraceError:
        return None
    if format.latencies is not None:
        return format
    if format.name == "aggregates":
        raise MeasurementError(f"{file.path}: aggregates alone, expected records of each request")
    if format.name in ("vllm-requests", "vllm-bench", "table"):
        return None
    raise MeasurementError(
        f"{file.path}: a trace ({format.name}), which says what was asked and not how long it "
        "took; expected a measurement"
    )


def _read_lines(file: Path, text: str, label: str) -> Measurement:
    """A request a line, with the engine's own timestamps."""
    clock: dict[str, list[float]] = {"queued": [], "scheduled": [], "first_token": [], "last": []}
    prompt, output, completed, ids = [], [], [], []
    for where, row in _rows(file, text):
        queued_s, scheduled_s, first_s, last_s = (
            math.nan if key != "queued_ts" and row.get(key) is None else _number(where, row, key)
            for key in ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
        )
        ended = math.isfinite(first_s) and math.isfinite(last_s)
        if first_s < queued_s or last_s < first_s:
            raise MeasurementError(
                f"{where}: queued_ts {queued_s}, first_token_ts {first_s} and last_token_ts "
                f"{last_s} are out of order; all must be seconds on one clock"
            )
        for name, time_s in zip(clock, (queued_s, scheduled_s, first_s, last_s), strict=True):
            clock[name].append(time_s)
        prompt.append(_tokens(where, row, "input_toks", at_least=0))
        output.append(_tokens(where, row, "output_toks", at_least=1 if ended else 0))
        completed.append(ended)
        ids.append(row.get("request_id"))
    if not ids:
        raise MeasurementError(f"{file}: no request in it")
    queued, scheduled, first, last = (np.array(times) for times in clock.values())
    return Measurement(
        label=label,
        recorded=True,
        arrival_s=queued,
        scheduled_s=scheduled,
        first_token_s=first,
        finished_s=last,
        ttft_s=first - queued,
        e2e_s=last - queued,
        prompt_tokens=np.array(prompt, np.int64),
        output_tokens=np.array(output, np.int64),
        completed=np.array(completed),
        request_id=None if None in ids else np.array([str(name) for name in ids], object),
    ).in_order_of_arrival()


def _bench_result(file: Path, text: str) -> Row | None:
    """The file as one bench result, or None where it is something else."""
    try:
        value = bench_object(TraceFile(file, text)).row
    except TraceError:
        return None
    if "queued_ts" in value:
        return None
    if lacking := [
        key for key in ("ttfts", "itls", "input_lens", "output_lens") if key not in value
    ]:
        raise MeasurementError(
            f"{file}: a JSON object without {lacking[0]}; expected a result of vLLM bench serve "
            "--save-result --save-detailed, or a request a line with queued_ts"
        )
    return value


def _read_bench(file: Path, result: Row, label: str) -> Measurement:
    """A bench result: lists with an entry per request, failed ones included."""
    names = ["input_lens", "output_lens", "ttfts", "itls"]
    names += [name for name in ("start_times", "errors") if result.get(name)]
    lists = {name: result[name] for name in names}
    sizes = {
        name: len(values) if isinstance(values, list) else -1 for name, values in lists.items()
    }
    if len(set(sizes.values())) != 1 or -1 in sizes.values():
        found = ", ".join(f"{max(size, 0)} {name}" for name, size in sizes.items())
        raise MeasurementError(f"{file}: {found}; expected lists of equal lengths")
    if not lists["ttfts"]:
        raise MeasurementError(f"{file}: no request in it")
    rows = [dict(zip(lists, entry, strict=True)) for entry in zip(*lists.values(), strict=True)]
    prompt, output, completed, ttft, e2e, start = [], [], [], [], [], []
    for number, row in enumerate(rows):
        where = f"{file}: request {number}"
        prompt.append(_tokens(where, row, "input_lens", at_least=0))
        output.append(_tokens(where, row, "output_lens", at_least=0))
        completed.append(output[-1] > 0 and not row.get("errors"))
        ttft.append(_number(where, row, "ttfts") if completed[-1] else math.nan)
        gaps = row["itls"] if isinstance(row["itls"], list) else [None]
        e2e.append(ttft[-1] + sum(_number(where, {"itls": gap}, "itls") for gap in gaps))
        start.append(_number(where, row, "start_times") if "start_times" in row else math.nan)
    arrival_s, ttft_s, e2e_s = (np.array(times, np.float64) for times in (start, ttft, e2e))
    duration_s = _number(str(file), result, "duration") if "duration" in result else None
    return Measurement(
        label=label,
        recorded=True,
        arrival_s=arrival_s,
        scheduled_s=np.full(len(rows), np.nan),
        first_token_s=arrival_s + ttft_s,
        finished_s=arrival_s + e2e_s,
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        prompt_tokens=np.array(prompt, np.int64),
        output_tokens=np.array(output, np.int64),
        completed=np.array(completed),
        duration_s=duration_s,
        by_client=True,
    ).in_order_of_arrival()


def _read_samples(file: Path) -> dict[str, Floats]:
    """timeseries.csv: what the engine counted at `t` seconds."""
    with plain_file.lines_of(file, errors="replace") as lines:
        reader = csv.DictReader(lines)
        head = list(reader.fieldnames or ())
        if lacking := [name for name in SAMPLE_COLUMNS if name not in head]:
            raise MeasurementError(f"{file}:1: no column {lacking[0]!r}, found {', '.join(head)}")
        columns: dict[str, list[float]] = {name: [] for name in SAMPLE_COLUMNS}
        for row in reader:
            for name, column in columns.items():
                where = f"{file}:{reader.line_num}"
                try:
                    column.append(_number(where, {name: float(row[name] or "")}, name))
                except ValueError:
                    given = f"{name} is {row[name]!r:.40}, expected a number of at least 0"
                    raise MeasurementError(f"{where}: {given}") from None
    samples = {name: np.array(column) for name, column in columns.items()}
    if (np.diff(samples["t"]) <= 0).any():
        raise MeasurementError(f"{file}: t must increase from row to row")
    return samples


def _rows(file: Path, text: str) -> Iterator[tuple[str, Row]]:
    """The JSON objects of a file that has one a line, each with its place."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise MeasurementError(f"{file}:{number}: expected a JSON object a line")
        yield f"{file}:{number}", row


def _number(where: str, row: Row, key: str) -> float:
    value = row.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e300:
        return float(value)
    given = "missing" if key not in row else f"{value!r:.40}"
    raise MeasurementError(f"{where}: {key} is {given}, expected a number of seconds")


def _tokens(where: str, row: Row, key: str, *, at_least: int) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value < 2**31:
        given = "missing" if key not in row else f"{value!r:.40}"
        raise MeasurementError(
            f"{where}: {key} is {given}, expected a whole number of at least {at_least}"
        )
    return value
