"""A large cluster against one replica: ``python -m tests.benchmarks.cluster [--replicas 64]``.

Requests simulated per second, records included, of 100,000 requests on 64 replicas behind each
router, and of as many requests on one replica at the same load for each.
"""

from __future__ import annotations

import argparse
import time

from scenarios.forecast import forecast
from scenarios.load import load_scenario

RATE = 46.6  # requests/s for each replica: 80 % of what one can do, as in `million`


def rate(requests: int, replicas: int, router: str | None) -> float:
    """Requests simulated per second of wall time."""
    settings = [f"workload.num_requests={requests}"]
    settings.append(f"workload.arrivals.request_rate={RATE * replicas}")
    if router is not None:
        settings += [f"cluster.replicas={replicas}", f"cluster.router={router}"]
    scenario, origin = load_scenario("million", settings)
    began_s = time.perf_counter()
    forecast(scenario, origin=origin)
    return requests / (time.perf_counter() - began_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--requests", type=int, default=100_000)
    options = parser.parse_args()
    rate(5_000, 1, None)  # warms up
    print("| | requests/s | of one replica's |\n|---|--:|--:|")
    alone = rate(options.requests, 1, None)
    print(f"| one replica | {alone:,.0f} | |")
    for router in ("round_robin", "random", "least_outstanding", "least_kv", "prefix_aware"):
        found = rate(options.requests, options.replicas, router)
        print(f"| {options.replicas} replicas, {router} | {found:,.0f} | {found / alone:.2f} |")


if __name__ == "__main__":
    main()
