"""The middle of a run: figures of the requests that came after a warm-up and before a cool-down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from sim.metrics import Slo, request_times_s, statistics_ms
from sim.records import Records
from sim.scratch import Rows

BATCH, FEWEST_BATCHES = 5, 10


def steady_state(
    records: Records, slo: Slo | None, *, warmup_s: float | Literal["auto"], cooldown_s: float
) -> dict[str, Any]:
    """Statistics as of the whole run, of requests that arrived from `warmup_s` after the first one
    until `cooldown_s` before the last one, as `steady_state`; nothing where both are 0.

    `auto`: the warm-up ends where `settled_from` finds it. `detected` says whether it did; where
    not, the whole run is taken.
    Throughput is of the requests that ended in that time and of their tokens. ITL, which is pooled
    over all requests, has no part in it.
    """
    if not warmup_s and not cooldown_s:
        return {}
    requests = records.requests
    arrival_s = requests["arrival_s"]
    first_s, until_s = float(arrival_s.min()), float(arrival_s.max()) - cooldown_s
    settled_s = _settled_s(requests, until_s) if warmup_s == "auto" else None
    if warmup_s == "auto":
        from_s = first_s if settled_s is None else settled_s
    else:
        from_s = first_s + warmup_s
    within = (arrival_s >= from_s) & (arrival_s <= until_s)
    served = within & ~requests["rejected"]
    times = request_times_s(Rows(requests, served))
    ended = (requests["finished_s"] >= from_s) & (requests["finished_s"] <= until_s)
    span_s = until_s - from_s
    tokens = requests.get("sampled_tokens", requests["output_tokens"])[ended].sum()
    found: dict[str, Any] = {
        "from_s": from_s,
        "until_s": until_s,
        "requests": int(within.sum()),
        "completed": int(served.sum()),
        "request_throughput": int(ended.sum()) / span_s if span_s > 0 else None,
        "output_throughput": int(tokens) / span_s if span_s > 0 else None,
    }
    if warmup_s == "auto":
        found["detected"] = settled_s is not None
    for name in ("ttft", "tpot", "e2el"):
        found |= statistics_ms(name, times[name])
    if slo is not None and slo.limits and within.any():
        good = np.ones(int(served.sum()), bool)
        for name, limit_s in slo.limits.items():
            good &= ~(times[name] > limit_s)
        found["slo_attainment"] = int(good.sum()) / int(within.sum())
    return {"steady_state": found}


def _settled_s(requests: Mapping[str, np.ndarray], until_s: float) -> float | None:
    """When the first request arrived whose time to the whole answer is of the steady state."""
    arrival_s = requests["arrival_s"]
    rows = np.flatnonzero(~requests["rejected"] & (arrival_s <= until_s))
    rows = rows[np.argsort(arrival_s[rows], kind="stable")]
    start = settled_from((requests["finished_s"] - arrival_s)[rows])
    return None if start is None else float(arrival_s[rows[start]])


def settled_from(values: np.ndarray) -> int | None:
    """The first value of a series that is not its warm-up's, by MSER-5; None: it never settles.

    Of all beginnings, the one is cut off without which the mean is known best: the standard error
    of the means of five is least (White, "An effective truncation heuristic for bias reduction in
    simulation output", Simulation 69, 1997). Where that leaves less than half, the series has not
    settled, or is too short to say.
    """
    batches = len(values) // BATCH
    if batches < FEWEST_BATCHES:
        return None
    means = values[: batches * BATCH].reshape(batches, BATCH).mean(axis=1)
    left = np.arange(batches, 0, -1)
    sums, squares = (np.cumsum(one[::-1])[::-1] for one in (means, means**2))
    spread = np.maximum(squares - sums**2 / left, 0.0) / left**2
    start = int(np.argmin(spread[: batches // 2 + 1]))
    return None if start >= batches // 2 else start * BATCH
