"""A run as vLLM's `bench serve --save-detailed` writes it: one JSON object, the same names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from reports.export.trace import token_times_s
from reports.page.records import RunRecords
from scenarios.quantity import figure_of

COUNTS = ("completed", "total_input_tokens", "total_output_tokens")
STATISTICS = ("mean", "median", "std", "p50", "p90", "p95", "p99")


def bench_result(
    records: RunRecords, *, scenario: Mapping[str, Any], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Statistics in ms, arrays in s; requests in order of arrival, those that completed."""
    requests = records.requests
    done = np.flatnonzero(np.isfinite(requests["finished_s"]))
    # A client's gap lies between two chunks, however many tokens a chunk has.
    times_s = token_times_s(records, portions=scenario.get("speculation") is not None)
    workload = scenario.get("workload") or {}
    arrivals = workload.get("arrivals") or {}
    result: dict[str, Any] = {
        "backend": "orcast",
        "label": str(scenario.get("name") or ""),
        "model_id": str(scenario.get("model") or ""),
        "tokenizer_id": str(scenario.get("model") or ""),
        "num_prompts": len(requests["request"]),
        "request_rate": arrivals.get("request_rate") or "inf",
        "burstiness": arrivals.get("burstiness") or 1.0,
        "max_concurrency": workload.get("max_concurrency"),
    }
    for name in (
        "duration", "completed", "total_input_tokens", "total_output_tokens", "request_throughput",
        "request_goodput", "output_throughput", "total_token_throughput",
    ):  # fmt: skip
        value = figure_of(summary, name)
        result[name] = int(value) if name in COUNTS and value is not None else value
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for statistic in STATISTICS:
            value = figure_of(summary, f"{statistic}_{metric}_ms")
            if value is not None:
                result[f"{statistic}_{metric}_ms"] = value
    arrival_s = requests["arrival_s"][done]
    result |= {
        "input_lens": requests["prompt_tokens"][done].tolist(),
        "output_lens": requests["output_tokens"][done].tolist(),
        "ttfts": (requests["first_token_s"][done] - arrival_s).tolist(),
        "itls": [np.diff(times).tolist() for times in times_s],
        "start_times": arrival_s.tolist(),
        "generated_texts": [""] * len(done),
        "errors": [""] * len(done),
    }
    return result
