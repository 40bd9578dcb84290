"""A large cluster against one replica: ``python -m tests.benchmarks.cluster [--replicas 64]``.

Requests simulated per second of CPU time, records and summary included: 100,000 requests on 64
replicas behind each router, and as many on one replica at the same load for each. The best of a few
runs in turn, since neighbours on a shared machine take their share of its caches.
"""

from __future__ import annotations

import argparse
import time

from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario
from sim.cluster.routers import ROUTERS

RATE = 37.9  # requests/s for each replica: 80 % of what one can do, as in `million`


def rate(requests: int, replicas: int, router: str | None) -> float:
    """Requests simulated per second of CPU time."""
    settings = [f"workload.num_requests={requests}"]
    settings.append(f"workload.arrivals.request_rate={RATE * replicas}")
    if router is not None:
        settings += [f"cluster.replicas={replicas}", f"cluster.router={router}"]
    scenario, origin = load_scenario("million", settings)
    began_s = time.process_time()
    forecast(scenario, origin=origin)
    return requests / (time.process_time() - began_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rate(5_000, 1, None)  # warms up
    best = dict.fromkeys([None, *ROUTERS], 0.0)
    for _ in range(options.repeats):
        for router in best:
            replicas = 1 if router is None else options.replicas
            best[router] = max(best[router], rate(options.requests, replicas, router))
    alone = best.pop(None)
    print("| | requests/s | of one replica's |\n|---|--:|--:|")
    print(f"| one replica | {alone:,.0f} | |")
    for router, found in best.items():
        print(f"| {options.replicas} replicas, {router} | {found:,.0f} | {found / alone:.2f} |")


if __name__ == "__main__":
    main()
