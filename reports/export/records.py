"""A run as benchmark clients write their records: AIPerf's profile export, GuideLLM's benchmarks.

The keys are those that the tools' own readers need, and those that Orcast reads back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from reports.page.records import RunRecords

STARTED_S = 1_700_000_000  # clients write the time of day; a simulated run has none


def aiperf_records(records: RunRecords) -> str:
    """profile_export.jsonl: a request a line, those that completed, latencies in ms."""
    lines = []
    for one in _completed(records):
        began_ns = STARTED_S * 10**9 + round(one["arrival_s"] * 1e9)
        metrics = {
            "request_latency": (one["e2e_s"] * 1e3, "ms"),
            "time_to_first_token": (one["ttft_s"] * 1e3, "ms"),
            "input_sequence_length": (one["prompt_tokens"], "tokens"),
            "output_sequence_length": (one["output_tokens"], "tokens"),
        }
        if one["output_tokens"] > 1:
            gap_s = (one["e2e_s"] - one["ttft_s"]) / (one["output_tokens"] - 1)
            metrics["inter_token_latency"] = (gap_s * 1e3, "ms")
        row = {
            "metadata": {
                "session_num": one["request"],
                "worker_id": "orcast",
                "x_request_id": one["request_id"],
                "request_start_ns": began_ns,
                "request_end_ns": began_ns + round(one["e2e_s"] * 1e9),
                "benchmark_phase": "profiling",
                "was_cancelled": False,
            },
            "metrics": {
                name: {"value": value, "unit": unit} for name, (value, unit) in metrics.items()
            },
            "error": None,
        }
        lines.append(json.dumps(row) + "\n")
    return "".join(lines)


def guidellm_result(records: RunRecords, *, scenario: Mapping[str, Any]) -> dict[str, Any]:
    """benchmarks.json of one benchmark: times in s, TTFT and the gaps between tokens in ms."""
    successful = []
    for one in _completed(records):
        began_s = STARTED_S + one["arrival_s"]
        gaps = one["output_tokens"] - 1
        gap_ms = (one["e2e_s"] - one["ttft_s"]) * 1e3 / gaps if gaps else None
        successful.append(
            {
                "type_": "generative_request_stats",
                "request_id": one["request_id"],
                "info": {
                    "timings": {"request_start": began_s, "request_end": began_s + one["e2e_s"]}
                },
                "prompt_tokens": one["prompt_tokens"],
                "output_tokens": one["output_tokens"],
                "request_latency": one["e2e_s"],
                "time_to_first_token_ms": one["ttft_s"] * 1e3,
                "inter_token_latency_ms": gap_ms,
            }
        )
    return {
        "metadata": {"version": 1, "guidellm_version": "orcast"},
        "args": {"model": str(scenario.get("model") or "")},
        "benchmarks": [
            {
                "type_": "generative_benchmark",
                "config": {},
                "requests": {"successful": successful, "incomplete": [], "errored": []},
            }
        ],
    }


def _completed(records: RunRecords) -> list[dict[str, Any]]:
    """The requests that completed, in order of arrival, as plain numbers."""
    columns = records.requests
    done = np.flatnonzero(np.isfinite(columns["finished_s"]))
    arrival_s = columns["arrival_s"][done]
    ids = columns.get("request_id")
    names = columns["request"][done].tolist() if ids is None else ids[done].tolist()
    found: dict[str, list[Any]] = {
        "request": columns["request"][done].tolist(),
        "request_id": [str(name) for name in names],
        "arrival_s": arrival_s.tolist(),
        "ttft_s": (columns["first_token_s"][done] - arrival_s).tolist(),
        "e2e_s": (columns["finished_s"][done] - arrival_s).tolist(),
        "prompt_tokens": columns["prompt_tokens"][done].tolist(),
        "output_tokens": columns["output_tokens"][done].tolist(),
    }
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
