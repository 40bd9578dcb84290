"""Synthetic runs for the reports' tests: small ones batched honestly, large ones by formula."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

KV_SLOTS = 65_536


@dataclass
class SyntheticRun:
    requests: dict[str, np.ndarray]
    iterations: dict[str, np.ndarray]
    preemptions: dict[str, np.ndarray]
    scenario: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


def summarize(run: SyntheticRun) -> SyntheticRun:
    """Give a synthetic run a scenario and a summary in vLLM's names."""
    requests = run.requests
    done = np.isfinite(requests["finished_s"])
    first, last = requests["first_token_s"][done], requests["finished_s"][done]
    arrival, output = requests["arrival_s"][done], requests["output_tokens"][done]
    gaps = np.maximum(output - 1, 1)
    values = {
        "ttft": first - arrival,
        "tpot": ((last - first) / gaps)[output > 1],
        "itl": ((last - first) / gaps)[output > 1],
        "e2el": last - arrival,
        "queue": requests["scheduled_s"][done] - arrival,
    }
    duration = float(last.max()) if done.any() else 0.0
    summary: dict[str, Any] = {
        "completed": int(done.sum()),
        "rejected": int(requests["rejected"].sum()),
        "duration": duration,
        "total_input_tokens": int(requests["prompt_tokens"][done].sum()),
        "total_output_tokens": int(output.sum()),
        "request_throughput": done.sum() / duration if duration else 0.0,
        "output_throughput": output.sum() / duration if duration else 0.0,
        "total_token_throughput": (
            (output.sum() + requests["prompt_tokens"][done].sum()) / duration if duration else 0.0
        ),
        "request_goodput": 0.93 * done.sum() / duration if duration else 0.0,
        "preemptions": int(requests["preemptions"].sum()),
        "kv_utilization": 0.412,
        "iterations": len(run.iterations["start_s"]),
        "simulated_requests_per_s": 21_400.0,
        "wall_s": 0.91,
        "warnings": [],
        "latency": {"source": "roofline", "measured": False, "label": "roofline, not measured"},
    }
    for metric, series in values.items():
        for name, at in (("median", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
            summary[f"{name}_{metric}_ms"] = (
                float(np.percentile(series, at)) * 1e3 if series.size else float("nan")
            )
        summary[f"mean_{metric}_ms"] = float(series.mean()) * 1e3 if series.size else float("nan")
    run.summary = summary
    run.scenario = {
        "name": "azure-conversation",
        "model": "llama-3.1-8b",
        "hardware": {"gpu": "h200-sxm", "tensor_parallel": 1, "pipeline_parallel": 1},
        "engine": {
            "scheduler": "chunked",
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            "block_size": 16,
            "gpu_memory_utilization": 0.9,
            "enable_prefix_caching": True,
            "preemption": "recompute",
        },
        "latency": {"source": "roofline"},
        "workload": {"trace": "AzureLLMInferenceTrace_conv.csv"},
        "cluster": {"replicas": 1, "router": "round_robin"},
        "slo": {"ttft_ms": 500, "tpot_ms": 50, "percentile": 99},
    }
    return run


def large_run(num_requests: int, num_iterations: int, *, seed: int = 1) -> SyntheticRun:
    """A busy afternoon by formula: bursts, a queue, long tails; columns agree with each other."""
    rng = np.random.default_rng(seed)
    day = np.linspace(0, 3 * np.pi, num_iterations)
    load = 0.55 + 0.35 * np.sin(day) ** 2 + 0.06 * np.sin(40 * day) * rng.random(num_iterations)
    decode_seqs = np.round(60 * load + rng.normal(0, 3, num_iterations)).clip(1, 256)
    chunk = rng.random(num_iterations) < 0.035
    prefill_tokens = np.where(chunk, rng.lognormal(6.6, 0.8, num_iterations).clip(16, 8192), 0)
    duration_s = 0.0052 + 2.4e-5 * decode_seqs + 2.6e-5 * prefill_tokens
    idle_s = np.where(rng.random(num_iterations) < 1e-4, rng.exponential(0.2, num_iterations), 0)
    start_s = np.concatenate([[0.0], np.cumsum(duration_s + idle_s)[:-1]])
    end_s = start_s + duration_s
    prompt = rng.lognormal(6.5, 1.0, num_requests).clip(4, 14_000).astype(np.int64)
    output = rng.lognormal(4.9, 0.8, num_requests).clip(1, 1500).astype(np.int64)
    scheduled_at = np.sort(rng.integers(0, max(1, num_iterations - 1800), num_requests))
    queue_s = rng.exponential(0.03, num_requests) * np.exp(2.2 * load[scheduled_at])
    arrival_s = np.sort(np.maximum(0.0, start_s[scheduled_at] - queue_s))
    first_at = np.minimum(scheduled_at + rng.integers(0, 6, num_requests), num_iterations - 1)
    last_at = np.minimum(first_at + output - 1, num_iterations - 1)
    used = (decode_seqs * 560).clip(0, 0.92 * KV_SLOTS)
    lost = decode_seqs * 8
    run = SyntheticRun(
        requests={
            "request": np.arange(num_requests),
            "arrival_s": arrival_s,
            "scheduled_s": np.maximum(start_s[scheduled_at], arrival_s),
            "first_token_s": np.maximum(end_s[first_at], arrival_s + 0.01),
            "finished_s": np.maximum(end_s[last_at], arrival_s + 0.02),
            "prompt_tokens": prompt,
            "output_tokens": output,
            "cached_tokens": np.zeros(num_requests, dtype=np.int64),
            "preemptions": np.zeros(num_requests, dtype=np.int64),
            "rejected": np.zeros(num_requests, dtype=bool),
            "replica": np.zeros(num_requests, dtype=np.int64),
        },
        iterations={
            "start_s": start_s,
            "duration_s": duration_s,
            "running": (decode_seqs + chunk).astype(np.int32),
            "waiting": np.zeros(num_iterations, dtype=np.int32),
            "prefill_seqs": chunk.astype(np.int32),
            "prefill_tokens": prefill_tokens.astype(np.int64),
            "decode_seqs": decode_seqs.astype(np.int32),
            "context_tokens": used.astype(np.int64),
            "num_tokens": (prefill_tokens.astype(np.int64) + decode_seqs.astype(np.int64)),
            "kv_used_tokens": used.astype(np.int64),
            "kv_reserved_tokens": np.zeros(num_iterations, dtype=np.int64),
            "kv_fragmentation_tokens": lost.astype(np.int64),
            "kv_free_tokens": KV_SLOTS - used.astype(np.int64) - lost.astype(np.int64),
            "preempted": np.zeros(num_iterations, dtype=np.int32),
            "finished": np.zeros(num_iterations, dtype=np.int32),
            "replica": np.zeros(num_iterations, dtype=np.int64),
        },
        preemptions={
            "request": np.zeros(0, dtype=np.int64),
            "preempted_s": np.zeros(0),
            "resumed_s": np.zeros(0),
        },
    )
    return summarize(run)


def batched_run(
    outputs: list[int],
    *,
    rows: int,
    static: bool = False,
    arrivals: list[float] | None = None,
    step_s: float = 0.02,
    reserve_tokens: int = 0,
) -> SyntheticRun:
    """Batch requests one iteration after the other, statically or continuously."""
    number = len(outputs)
    arrival = np.array(arrivals or [0.0] * number)
    scheduled, first, finished = (np.full(number, np.nan) for _ in range(3))
    emitted = [0] * number
    waiting, running, iterations = list(range(number)), [], []
    now = 0.0
    while waiting or running:
        if not running or not static:
            while waiting and len(running) < rows and arrival[waiting[0]] <= now:
                running.append(waiting.pop(0))
                scheduled[running[-1]] = now
        if not running:
            now = arrival[waiting[0]]
            continue
        prefills = [r for r in running if emitted[r] == 0]
        decodes = [r for r in running if emitted[r] > 0]
        active = [r for r in decodes if emitted[r] < outputs[r]]
        duration = step_s * (1 + 0.6 * len(prefills))
        held = sum(40 + emitted[r] for r in running)
        reserved = sum(max(0, reserve_tokens - emitted[r]) for r in running)
        iterations.append(
            (now, duration, len(running), sum(arrival[w] <= now for w in waiting), len(prefills),
             40 * len(prefills), len(decodes), 40 * len(prefills) + len(decodes), held, reserved,
             8 * len(running), 4096 - held - reserved - 8 * len(running),
             len(prefills) + len(active))
        )  # fmt: skip
        now += duration
        for r in prefills + active:
            emitted[r] += 1
            if emitted[r] == 1:
                first[r] = now
            if emitted[r] == outputs[r]:
                finished[r] = now
        over = [r for r in running if emitted[r] == outputs[r]]
        if not static or len(over) == len(running):
            running = [r for r in running if r not in over]
            if static:
                finished[over] = now
    names = (
        "start_s duration_s running waiting prefill_seqs prefill_tokens decode_seqs num_tokens "
        "kv_used_tokens kv_reserved_tokens kv_fragmentation_tokens kv_free_tokens emitted"
    )
    columns = {
        name: np.array(column)
        for name, column in zip(names.split(), zip(*iterations, strict=True), strict=True)
    }
    zeros = np.zeros(len(iterations), dtype=np.int64)
    columns |= {"context_tokens": zeros, "preempted": zeros, "finished": zeros, "replica": zeros}
    run = SyntheticRun(
        requests={
            "request": np.arange(number),
            "arrival_s": arrival,
            "scheduled_s": scheduled,
            "first_token_s": first,
            "finished_s": finished,
            "prompt_tokens": np.full(number, 40),
            "output_tokens": np.array(outputs),
            "cached_tokens": np.zeros(number, dtype=np.int64),
            "preemptions": np.zeros(number, dtype=np.int64),
            "rejected": np.zeros(number, dtype=bool),
            "replica": np.zeros(number, dtype=np.int64),
        },
        iterations=columns,
        preemptions={"request": np.zeros(0, dtype=np.int64), "preempted_s": np.zeros(0),
                     "resumed_s": np.zeros(0)},
    )  # fmt: skip
    summarize(run)
    run.scenario["name"] = "static-vs-continuous"
    run.scenario["engine"] = {"scheduler": "static" if static else "orca", "max_num_seqs": rows}
    return run


@pytest.fixture
def make_large_run() -> Callable[..., SyntheticRun]:
    return large_run


@pytest.fixture
def make_batched_run() -> Callable[..., SyntheticRun]:
    return batched_run


@pytest.fixture(name="summarize_run")
def _summarize_run() -> Callable[[SyntheticRun], SyntheticRun]:
    return summarize
