"""Recorded requests as a workload: one function for every trace format Orcast reads.

    azure          CSV    TIMESTAMP,ContextTokens,GeneratedTokens
    burstgpt       CSV    Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
    mooncake       JSONL  timestamp (ms), input_length, output_length, hash_ids
    sharegpt       JSONL  arrival_time_ns, input_toks, output_toks, input_tok_ids, output_tok_ids
    vllm-requests  JSONL  queued_ts, input_toks, output_toks, request_id
    vllm-bench     JSON   the result of `vllm bench serve --save-detailed`

Columns and keys beyond those needed are ignored, in any order.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

from sim.workload.labels import trace_labels
from sim.workload.trace_csv import (
    AZURE_COLUMNS,
    BURSTGPT_COLUMNS,
    csv_header,
    read_azure,
    read_burstgpt,
    read_column,
)
from sim.workload.trace_file import TraceError, TraceFile, shown
from sim.workload.trace_json import (
    json_object,
    read_mooncake,
    read_sharegpt,
    read_vllm_bench,
    read_vllm_requests,
)
from sim.workload.workload import Workload

__all__ = ["FORMATS", "TraceError", "read_column", "read_trace"]

FORMATS = ("azure", "burstgpt", "mooncake", "sharegpt", "vllm-requests", "vllm-bench")


def read_trace(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    content: bool = False,
    output_content: bool = False,
    label: str | None = None,
) -> Workload:
    """Read a trace: requests in order of arrival, the first at time 0.

    format: one of FORMATS, or "auto" to tell from what the file holds.
    content: keep what the prompts contain, for the prefix cache: token ids of sharegpt, hash_ids of
        mooncake. The other formats record no content; for them this changes nothing.
    output_content: let sharegpt's recorded answers be content too. Off by default: an engine that
        replays recorded lengths generates tokens of its own, so a later prompt that quotes the
        recorded answer does not match what that engine has in its cache.
    label: the column or key whose text names each request's class.

    Requests that failed (no output token) are left out and counted in the workload's notes. Rows
    out of order are sorted, equal times keeping the file's order.

    Raises TraceError, one line that begins PATH:LINE.
    """
    file = TraceFile.read(path)
    if format == "auto":
        format = _detected(file)
    if label is not None:
        if format == "vllm-bench":
            raise TraceError(f"{file.path}: a vllm-bench result has no rows to take {label!r} from")
        file = replace(file, labels=trace_labels(file, label))
    match format:
        case "azure":
            return read_azure(file)
        case "burstgpt":
            return read_burstgpt(file)
        case "mooncake":
            return read_mooncake(file, content=content)
        case "sharegpt":
            return read_sharegpt(file, content=content, output_content=output_content)
        case "vllm-requests":
            return read_vllm_requests(file)
        case "vllm-bench":
            return read_vllm_bench(file)
    raise TraceError(f"{file.path}: unknown format {format!r}, expected auto, {', '.join(FORMATS)}")


def _detected(file: TraceFile) -> str:
    """The format whose names the file's first line (or whole JSON object) shows."""
    line, text = file.first_line()
    if not text.lstrip().startswith("{"):
        header = set(csv_header(text))
        if header.issuperset(AZURE_COLUMNS):
            return "azure"
        if header.issuperset(BURSTGPT_COLUMNS):
            return "burstgpt"
    else:
        try:
            first = json.loads(text)
        except (ValueError, RecursionError):  # an object over several lines, or none at all
            first = json_object(file)
        if {"timestamp", "input_length"} <= first.keys():
            return "mooncake"
        if {"arrival_time_ns", "input_toks"} <= first.keys():
            return "sharegpt"
        if {"queued_ts", "input_toks"} <= first.keys():
            return "vllm-requests"
        if {"input_lens", "request_throughput", "ttfts"} & first.keys():
            return "vllm-bench"
    raise file.error(
        line, f"unknown format, first line {shown(text)}, expected {', '.join(FORMATS)}"
    )
