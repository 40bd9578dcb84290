"""``python -m tests.benchmarks.checking``: what `--check` costs, as a ratio of processor time.

Each scenario is simulated without and with checks, one after the other, three times; printed is the
median of the three ratios. The goal is three at most.
"""

from __future__ import annotations

import statistics
import time

from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import serve
from scenarios.schema.load import load_scenario

SCENARIOS = {
    "quickstart": ["latency.source=roofline", "workload.num_requests=1000"],
    "long-context": [
        "latency.source=roofline", "workload.num_requests=100",
        "workload.lengths={prompt: {distribution: fixed, tokens: 8000}, "
        "output: {distribution: fixed, tokens: 300}}",
    ],
    "prefixes": [
        "latency.source=roofline", "workload.num_requests=500",
        "workload.shared_prefixes={num_prefixes: 4, tokens: 512}",
        "engine.enable_prefix_caching=true",
    ],
}  # fmt: skip


def main() -> None:
    for name, settings in SCENARIOS.items():
        scenario, origin = load_scenario("quickstart", settings)
        deployed = deploy(scenario, origin=origin)
        for leap in (True, False):
            ratios = []
            for _ in range(3):
                took_s = []
                for check in (False, True):
                    began_s = time.process_time()
                    serve(deployed, leap=leap, check=check)
                    took_s.append(time.process_time() - began_s)
                ratios.append(took_s[1] / took_s[0])
            print(f"{name}, {'leaps' if leap else 'steps'}: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
