"""The middle of a run: figures of the requests that came after a warm-up and before a cool-down."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.metrics import Slo, request_times_s, statistics_ms
from sim.records import Records


def steady_state(
    records: Records, slo: Slo | None, *, warmup_s: float, cooldown_s: float
) -> dict[str, Any]:
    """Statistics as of the whole run, of requests that arrived from `warmup_s` after the first one
    until `cooldown_s` before the last one, as `steady_state`; nothing where both are 0.

    Throughput is of the requests that ended in that time and of their tokens. ITL, which is pooled
    over all requests, has no part in it.
    """
    if not warmup_s and not cooldown_s:
        return {}
    requests = records.requests
    arrival_s = requests["arrival_s"]
    from_s, until_s = float(arrival_s.min()) + warmup_s, float(arrival_s.max()) - cooldown_s
    within = (arrival_s >= from_s) & (arrival_s <= until_s)
    served = within & ~requests["rejected"]
    times = request_times_s({name: column[served] for name, column in requests.items()})
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
    for name in ("ttft", "tpot", "e2el"):
        found |= statistics_ms(name, times[name])
    if slo is not None and slo.limits and within.any():
        good = np.ones(int(served.sum()), bool)
        for name, limit_s in slo.limits.items():
            good &= ~(times[name] > limit_s)
        found["slo_attainment"] = int(good.sum()) / int(within.sum())
    return {"steady_state": found}
