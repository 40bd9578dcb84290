"""How fast the what-if page answers: ``python -m tests.benchmarks.what_if [--requests 2000]``.

Milliseconds on the server from a turned knob to the new figures, ready to be sent: forecast, and
charts of both settings. Plotly redraws in the browser in some 50 ms more.
"""

from __future__ import annotations

import argparse
import statistics
import time

from orcast.ui_cli import question
from reports.what_if.figures import figures, snapshot
from reports.what_if.table import rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    _, known, ask = question("quickstart", [f"workload.num_requests={options.requests}"])
    rate = next(knob for knob in known if knob.path == "workload.arrivals.request_rate")
    batch = next(knob for knob in known if knob.path == "engine.max_num_seqs")
    before = None
    spent_ms: dict[str, list[float]] = {"forecast": [], "charts": [], "together": []}
    for turn in range(options.turns + 2):
        values = {
            rate.path: rate.choices[4 + turn % 8],
            batch.path: batch.choices[6 + turn % 6],
        }
        began_s = time.perf_counter()
        answer = ask(values)
        answered_s = time.perf_counter()
        now = snapshot(answer.records, answer.summary)
        rows(now, before)
        figures(now, before, dark=False)
        drawn_s = time.perf_counter()
        before = now
        if turn >= 2:  # the first ones import and warm up
            spent_ms["forecast"].append((answered_s - began_s) * 1e3)
            spent_ms["charts"].append((drawn_s - answered_s) * 1e3)
            spent_ms["together"].append((drawn_s - began_s) * 1e3)
    print(f"{options.requests} requests, {options.turns} turned knobs:")
    for name, times_ms in spent_ms.items():
        median_ms = statistics.median(times_ms)
        print(f"  {name:10} median {median_ms:6.1f} ms, worst {max(times_ms):6.1f} ms")


if __name__ == "__main__":
    main()
