"""What the order of a queue and its limits do to whom: tables and a figure from library scenarios.

    python -m tests.benchmarks.policies [--figures FOLDER]

Every figure is a simulated run. `--figures` writes policies.html, which docs/images/policies.png is
a picture of (1200 x 430 pixels).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from reports.page.style import PALETTE
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario
from tests.benchmarks.sharing import axes, chart

ORDERS = ("fcfs", "priority", "earliest_deadline")
LENGTHS = ("fcfs", "shortest_prompt", "shortest_job")
LIMITS = {
    "no limit": ("engine.max_num_waiting=null",),
    "16 may wait": (),
    "clients wait 2 s": ("engine.max_num_waiting=null", "engine.max_queue_time_s=2"),
}


def summary(name: str, *settings: str) -> dict[str, Any]:
    scenario, origin = load_scenario(name, list(settings))
    return forecast(scenario, origin=origin).summary


def by_order(name: str, orders: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return {order: summary(name, f"engine.scheduling_policy={order}") for order in orders}


def tables() -> dict[str, dict[str, dict[str, Any]]]:
    """All runs, by question and setting; printed as Markdown."""
    runs = {
        "classes": by_order("priority-classes", ORDERS),
        "lengths": by_order("shortest-job-first", LENGTHS),
        "clients": by_order("fair-sharing", ("fcfs", "fair")),
        "limits": {name: summary("admission-control", *given) for name, given in LIMITS.items()},
    }
    print("\n| order | p95 TTFT of chat (ms) | of batch | p95 E2E of chat | of batch |")
    print("|---|--:|--:|--:|--:|")
    for order, run in runs["classes"].items():
        chat, batch = run["classes"]["chat"], run["classes"]["batch"]
        cells = [chat["p95_ttft_ms"], batch["p95_ttft_ms"]]
        cells += [chat["p95_e2el_ms"], batch["p95_e2el_ms"]]
        print(f"| `{order}` | " + " | ".join(f"{cell:,.0f}" for cell in cells) + " |")
    print("\n| order | mean TTFT (ms) | p99 TTFT | mean E2E | p99 E2E |\n|---|--:|--:|--:|--:|")
    for order, run in runs["lengths"].items():
        keys = ("mean_ttft_ms", "p99_ttft_ms", "mean_e2el_ms", "p99_e2el_ms")
        print(f"| `{order}` | " + " | ".join(f"{run[key]:,.0f}" for key in keys) + " |")
    print("\n| order | mean TTFT of greedy (ms) | of modest | of small |\n|---|--:|--:|--:|")
    for order, run in runs["clients"].items():
        means = [run["classes"][name]["mean_ttft_ms"] for name in ("greedy", "modest", "small")]
        print(f"| `{order}` | " + " | ".join(f"{mean:,.0f}" for mean in means) + " |")
    print("\n| queue | refused or gone | p99 TTFT (ms) | requests/s within the SLO |")
    print("|---|--:|--:|--:|")
    for name, run in runs["limits"].items():
        within = run["request_goodput"]
        print(f"| {name} | {run['rejected']:,} | {run['p99_ttft_ms']:,.0f} | {within:.1f} |")
    return runs


def figure(path: Path, runs: dict[str, dict[str, dict[str, Any]]]) -> None:
    import plotly.graph_objects as go

    drawn = chart(
        ("two classes, one GPU", "three clients, one of them greedy", "more load than capacity"),
        "What the queue decides (roofline, unmeasured)",
    )

    def bars(column: int, x: list[str], y: list[float], name: str, tone: str) -> None:
        style = {"color": PALETTE[tone][0]}
        drawn.add_trace(
            go.Bar(x=x, y=y, name=name, marker=style, text=[name] * len(x), textposition="outside",
                   cliponaxis=False, textfont={"size": 10}), row=1, col=column,
        )  # fmt: skip

    for name, tone in (("chat", "accent"), ("batch", "prefill")):
        values = [run["classes"][name]["p95_ttft_ms"] for run in runs["classes"].values()]
        bars(1, [order.replace("_", "<br>") for order in runs["classes"]], values, name, tone)
    for name, tone in (("greedy", "prefill"), ("modest", "accent"), ("small", "e2e")):
        values = [run["classes"][name]["mean_ttft_ms"] for run in runs["clients"].values()]
        bars(2, list(runs["clients"]), values, name, tone)
    values = [run["request_goodput"] for run in runs["limits"].values()]
    bars(3, [name.replace(" ", "<br>", 1) for name in runs["limits"]], values, "", "accent")
    axes(
        drawn,
        {1: ("", "p95 TTFT (ms)"), 2: ("", "mean TTFT (ms)"), 3: ("", "requests/s within the SLO")},
    )
    drawn.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--figures", type=Path, help="write the figure's page to this folder")
    given = parser.parse_args()
    runs = tables()
    if given.figures is not None:
        given.figures.mkdir(parents=True, exist_ok=True)
        figure(given.figures / "policies.html", runs)
        print(f"\nFigure: {given.figures / 'policies.html'}")


if __name__ == "__main__":
    main()
