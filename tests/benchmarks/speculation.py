"""When does speculative decoding pay? Tables of ratios, from runs of the library's scenarios.

    python -m tests.benchmarks.speculation [--figure FILE.html]

Every figure is a simulated run against the same load without speculation. `--figure` writes the
page that docs/images/speculation.png is a picture of (1200 x 470 pixels).
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

from reports.page.style import FONT, PALETTE
from scenarios import library
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario

CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
RATES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
DRAFTS = (1, 2, 3, 4, 5, 6, 8, 10)
# Draft models of growing size, and how often their tokens are accepted: assumed.
MODELS = {"llama-3.2-1b": 0.70, "llama-3.2-3b": 0.76, "llama-3.1-8b": 0.82}
COLOURS = ("accent", "prefill", "running", "preempted", "e2e", "ink")


@cache
def summary_of(name: str, *settings: str) -> dict[str, Any]:
    """The summary of one run."""
    scenario, origin = load_scenario(name, settings)
    return forecast(scenario, origin=origin).summary


def load(clients: int) -> tuple[str, ...]:
    """So many clients, answers of equal length, equally many for each: two at least."""
    return (
        f"workload.max_concurrency={clients}",
        f"workload.num_requests={clients * max(2, 32 // clients)}",
        "workload.lengths.output={distribution: fixed, tokens: 256}",
    )


def speed_up(clients: int, *settings: str) -> float:
    """Output tokens per second of scenario `speculation`, with over without."""
    plain = summary_of("speculation", *load(clients), "speculation=null")
    with_drafts = summary_of("speculation", *load(clients), *settings)
    return float(with_drafts["output_throughput"] / plain["output_throughput"])


def rate(acceptance: float) -> str:
    return f"speculation.acceptance={{rate: {acceptance}}}"


def table(head: list[str], rows: list[list[str]]) -> None:
    """Print Markdown."""
    print(f"| {' | '.join(head)} |\n|{'--:|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def by_acceptance() -> None:
    print("Output tokens/s, with speculation over without: clients and acceptance rate (k = 4)\n")
    rows = [[str(n), *(f"{speed_up(n, rate(a)):.2f}" for a in RATES)] for n in CLIENTS]
    table(["clients", *(f"α = {a}" for a in RATES)], rows)


def by_number_of_drafts() -> None:
    print("The same by number of drafts k (α = 0.7)\n")
    rows = [
        [str(n), *(f"{speed_up(n, f'speculation.num_draft_tokens={k}'):.2f}" for k in DRAFTS)]
        for n in CLIENTS
    ]
    table(["clients", *(f"k = {k}" for k in DRAFTS)], rows)


def by_draft_model() -> None:
    print("Which draft for llama-3.1-70b (k = 4)\n")
    rows = []
    for model, acceptance in MODELS.items():
        settings = (f"speculation.draft_model={model}", rate(acceptance))
        alone = summary_of("speculation", *load(1), *settings)["speculation"]
        equal = (f"speculation.draft_model={model}", rate(0.82))
        rows.append(
            [
                model,
                f"{acceptance:.2f}",
                f"{alone['expected_tokens_per_step']:.2f}",
                f"{alone['draft_share']:.0%}",
                *(f"{speed_up(n, *settings):.2f}" for n in (1, 32, 128)),
                f"{speed_up(1, *equal):.2f}",
            ]
        )
    head = ["draft", "α", "tokens a step", "time drafting", "1 client", "32", "128"]
    table([*head, "1 client at α = 0.82"], rows)


def by_technique() -> None:
    print("Every technique's scenario, as it is\n")
    rows = []
    for path in sorted(library.ROOT.glob("speculation*.yaml")):
        plain, drafting = (summary_of(path.stem, *more) for more in (("speculation=null",), ()))
        figures = drafting["speculation"]
        rows.append(
            [
                f"`{path.stem}`",
                str(figures["query_tokens"]),
                f"{figures['expected_tokens_per_step']:.2f}",
                f"{figures['acceptance_length']:.2f}",
                f"{figures['draft_share']:.0%}",
                f"{plain['mean_tpot_ms']:.1f} → {drafting['mean_tpot_ms']:.1f}",
                f"{drafting['num_gpu_blocks'] / plain['num_gpu_blocks']:.0%}",
            ]
        )
    head = ["scenario", "tokens verified", "expected a step", "achieved", "time drafting"]
    table([*head, "mean TPOT (ms)", "KV blocks left"], rows)


def figure(path: Path) -> None:
    """Write the page of the figure."""
    from plotly.subplots import make_subplots

    chart = make_subplots(
        cols=2,
        horizontal_spacing=0.08,
        subplot_titles=(
            "by acceptance rate α (four drafts)",
            "by number of drafts k (α = 0.7)",
        ),
    )
    counts = [str(n) for n in CLIENTS]
    for acceptance, name in zip(RATES, COLOURS, strict=True):
        gains = [speed_up(n, rate(acceptance)) for n in CLIENTS]
        _line(chart, 1, counts, gains, PALETTE[name][0], f"α = {acceptance}")
    shown = (1, 16, 64, 128, 256)
    ks = [str(k) for k in DRAFTS]
    for clients, name in zip(shown, COLOURS, strict=False):
        gains = [speed_up(clients, f"speculation.num_draft_tokens={k}") for k in DRAFTS]
        label = "1 client" if clients == 1 else f"{clients} clients"
        _line(chart, 2, ks, gains, PALETTE[name][0], label)
    for column in (1, 2):
        chart.add_hline(y=1.0, line={"color": PALETTE["ink"][0], "dash": "dot"}, col=column, row=1)
    grid = PALETTE["grid"][0]
    for column, (title, ends) in enumerate(
        {
            "clients waiting for an answer": (-1.4, len(CLIENTS) - 0.7),
            "drafted tokens k": (-0.3, len(DRAFTS) + 0.2),
        }.items(),
        start=1,
    ):
        chart.update_xaxes(title_text=title, col=column, type="category", range=ends)
    chart.update_yaxes(title_text="output tokens/s, with / without", col=1)
    chart.update_yaxes(rangemode="tozero", gridcolor=grid)
    chart.update_xaxes(gridcolor=grid, linecolor=PALETTE["edge"][0])
    chart.update_layout(
        title={
            "text": "Speculative decoding: llama-3.1-70b on four H100, draft llama-3.2-1b "
            "(roofline, unmeasured)",
            "x": 0.01,
        },
        font={"family": FONT, "size": 13, "color": PALETTE["ink"][0]},
        plot_bgcolor="white",
        width=1200,
        height=470,
        margin={"l": 60, "r": 20, "t": 84, "b": 56},
        showlegend=False,
    )
    chart.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def _line(chart: Any, column: int, x: list[str], y: list[float], colour: str, label: str) -> None:
    import plotly.graph_objects as go

    chart.add_trace(
        go.Scatter(x=x, y=y, mode="lines+markers", line={"color": colour, "width": 2}, name=label),
        row=1,
        col=column,
    )
    # Beside the end at which the lines lie apart.
    at = 0 if column == 1 else len(x) - 1
    chart.add_annotation(
        x=at,
        y=y[at],
        text=label,
        xref="x" if column == 1 else f"x{column}",
        yref="y" if column == 1 else f"y{column}",
        xanchor="right" if column == 1 else "left",
        xshift=-8 if column == 1 else 8,
        showarrow=False,
        font={"color": colour, "size": 12},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--figure", type=Path, help="write the figure's page here")
    given = parser.parse_args()
    by_acceptance()
    by_number_of_drafts()
    by_draft_model()
    by_technique()
    if given.figure is not None:
        figure(given.figure)
        print(f"Figure: {given.figure}")


if __name__ == "__main__":
    main()
