"""What pools, routers and autoscaling do: tables and a figure from the cluster scenarios.

    python -m tests.benchmarks.fleets [--figures FOLDER]

Every figure is a simulated run. `--figures` writes clusters.html, which docs/images/clusters.png is
a picture of (1200 x 430 pixels).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from reports.page.style import PALETTE
from tests.benchmarks.policies import summary
from tests.benchmarks.sharing import axes, chart, label, line

TOGETHER = ("cluster.groups=[]", "cluster.kv_link=null", "cluster.replicas=4")
RATES = (10, 15, 20, 25, 30, 35, 40, 45, 50)
ROUTERS = ("round_robin", "session_sticky", "prefix_aware")
Runs = dict[str, dict[str, Any]]


def within_share(run: dict[str, Any]) -> float:
    """Per cent of requests within the SLO."""
    return float(100.0 * run["request_goodput"] / run["request_throughput"])


def disaggregation() -> tuple[Runs, dict[str, list[float]]]:
    """At the scenario's own load, and the share within the SLO by load."""
    settings = {"two prefill, two decode": (), "together": TOGETHER}
    runs = {name: summary("disaggregated", *given) for name, given in settings.items()}
    print("\n| four H100s | p99 TTFT | p99 TPOT | requests/s within the SLO |\n|---|--:|--:|--:|")
    for name, run in runs.items():
        cells = f"{run['p99_ttft_ms']:.0f} ms | {run['p99_tpot_ms']:.1f} ms"
        print(f"| {name} | {cells} | {run['request_goodput']:.1f} |")
    sent = runs["two prefill, two decode"]["cluster"]["mean_kv_transfer_ms"]
    print(f"\nA cache is on its way for {sent:.1f} ms.")
    shares = {
        name: [
            within_share(summary("disaggregated", *given, f"workload.arrivals.request_rate={rate}"))
            for rate in RATES
        ]
        for name, given in settings.items()
    }
    return runs, shares


def routing() -> Runs:
    runs = {name: summary("routers", f"cluster.router={name}") for name in ROUTERS}
    print("\n| router | cached prompt tokens | mean TTFT | requests/s within the SLO |")
    print("|---|--:|--:|--:|")
    for name, run in runs.items():
        cells = f"{run['cached_prompt_tokens'] / 1e6:.1f} million | {run['mean_ttft_ms']:,.0f} ms"
        print(f"| `{name}` | {cells} | {run['request_goodput']:.1f} |")
    return runs


def the_rest() -> dict[str, Any]:
    """Autoscaling's replicas over time; unequal replicas and a failure in words."""
    scaled, fixed = (
        summary("autoscaling", *given) for given in ((), ("cluster.autoscaling=null",))
    )
    paid = [run["cluster"]["replica_seconds"] for run in (scaled, fixed)]
    share = scaled["slo_attainment"]["ttft"]
    print(f"\nautoscaling: {paid[0]:,.0f} GPU-seconds instead of {paid[1]:,.0f}; TTFT {share:.0%}")
    looking, blind = (
        summary("heterogeneous", *given) for given in ((), ("cluster.router=round_robin",))
    )
    times = [run["p99_ttft_ms"] for run in (looking, blind)]
    print(f"heterogeneous: p99 TTFT {times[0]:.0f} ms, in turn {times[1]:.0f} ms")
    failing, sound = (
        summary("replica-failure", *given) for given in ((), ("cluster.failures=[]",))
    )
    retried = failing["cluster"]["retried_requests"]
    times = [run["p99_tpot_ms"] for run in (failing, sound)]
    print(f"replica-failure: {retried} retried, p99 TPOT {times[0]:.1f} ms, else {times[1]:.1f} ms")
    return scaled


def figure(path: Path, shares: dict[str, list[float]], runs: Runs, scaled: dict[str, Any]) -> None:
    import plotly.graph_objects as go

    drawn = chart(
        ("prefill and decode apart", "which router", "replicas that follow the load"),
        "What a fleet's plan buys (roofline, unmeasured)",
    )
    for values, tone, place in zip(
        shares.values(), ("accent", "prefill"), ((6, "apart", "left"), (5, "together", "right")),
        strict=True,
    ):  # fmt: skip
        at, name, side = place
        line(drawn, 1, RATES, values, tone)
        shift = 8 if side == "left" else -8
        label(drawn, 1, (RATES[at], values[at]), name, tone, xanchor=side, xshift=shift)
    drawn.add_trace(
        go.Bar(
            x=[name.replace("_", "<br>") for name in runs],
            y=[run["mean_ttft_ms"] for run in runs.values()],
            marker={"color": PALETTE["accent"][0]},
            text=[f"{run['mean_ttft_ms']:,.0f} ms" for run in runs.values()],
            textposition="outside",
            cliponaxis=False,
        ),
        row=1,
        col=2,
    )
    steps = scaled["cluster"]["replicas_over_time"]
    drawn.add_trace(
        go.Scatter(
            x=[at_s for at_s, _ in steps],
            y=[count for _, count in steps],
            mode="lines",
            line={"color": PALETTE["accent"][0], "width": 2, "shape": "hv"},
        ),
        row=1,
        col=3,
    )
    axes(
        drawn,
        {
            1: ("requests per second", "% within 250 ms TTFT, 11 ms TPOT"),
            2: ("", "mean TTFT (ms)"),
            3: ("time (s)", "replicas paid for"),
        },
    )
    drawn.update_yaxes(type="log", col=2, range=(1, 4.4), dtick=1)
    drawn.update_yaxes(range=(0, 104), col=1)
    drawn.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--figures", type=Path, help="write the figure's page to this folder")
    given = parser.parse_args()
    _, shares = disaggregation()
    for name, values in shares.items():
        print(f"{name}: " + ", ".join(f"{v:.0f} %" for v in values) + f" at {RATES}")
    runs, scaled = routing(), the_rest()
    if given.figures is not None:
        given.figures.mkdir(parents=True, exist_ok=True)
        figure(given.figures / "clusters.html", shares, runs, scaled)


if __name__ == "__main__":
    main()
