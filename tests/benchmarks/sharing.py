"""What batching, sharing and memory techniques buy: tables of ratios from the library's scenarios.

    python -m tests.benchmarks.sharing [--figures FOLDER]

Every figure is a simulated run. `--figures` writes batching.html and sharing.html, the pages that
docs/images/batching.png and docs/images/sharing.png are pictures of (1200 x 430 pixels).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from reports.page.style import FONT, PALETTE
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario
from sim.batch import Batch, PrefillChunk
from sim.request import Request

SIGMAS = (0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
RATES = (
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    1.0,
    1.2,
    1.4,
    1.6,
    1.8,
    2.0,
    2.2,
    2.4,
    2.6,
    2.8,
    3.0,
    3.2,
    3.4,
    3.6,
)
ENGINES = {
    "vLLM": (),
    "Orca (Oracle)": ("engine.scheduler=orca", "engine.reservation=oracle"),
    "Orca (Pow2)": ("engine.scheduler=orca", "engine.reservation=pow2"),
    "Orca (Max)": ("engine.scheduler=orca", "engine.reservation=max_model_len"),
}
SATURATED_MS = 100  # a token
LABEL_MS = 120
BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384)
WHOLE_PROMPTS = ("engine.scheduler=paged", "engine.max_num_batched_tokens=16384")
COUNTS = (2, 4, 6)
LENGTHS = {
    "ShareGPT": (),
    "Alpaca": (
        "workload.lengths.prompt.mean=19.31",
        "workload.lengths.output.mean=58.45",
        "workload.arrivals.request_rate=6",
    ),
}
BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HOST_GIB = (0, 4, 8, 16, 32, 64, 96)
COLOURS = ("accent", "prefill", "running", "preempted")


@cache
def summary_of(name: str, *settings: str) -> dict[str, Any]:
    """The summary of one run."""
    scenario, origin = load_scenario(name, settings)
    return forecast(scenario, origin=origin).summary


def one_victim_ms(tokens: int, block_size: int) -> tuple[float, float]:
    """To swap one sequence out and in, and to compute it again, in scenario `preemption`."""
    scenario, origin = load_scenario("preemption", [f"engine.block_size={block_size}"])
    latency = deploy(scenario, origin=origin).latency
    idle_s = latency.iteration_s(Batch())
    blocks = -(-tokens // block_size)
    swap_s = latency.iteration_s(Batch(swap_in_blocks=blocks, swap_out_blocks=blocks)) - idle_s
    chunk = PrefillChunk(Request(0, 0.0, tokens, 1, 1), tokens, 0)
    prefill = Batch(prefills=[chunk], num_tokens=tokens, num_emitting=1, num_seqs=1)
    return swap_s * 1e3, (latency.iteration_s(prefill) - idle_s) * 1e3


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print Markdown."""
    print(f"| {' | '.join(head)} |\n|{'--:|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


# -- batching -------------------------------------------------------------------------------------


def orca_over_static(sigma: float) -> float:
    """Output tokens per second, iteration-level over request-level batching."""
    orca, static = (
        summary_of(
            "orca-vs-static", f"workload.lengths.output.sigma={sigma}", f"engine.scheduler={name}"
        )["output_throughput"]
        for name in ("orca", "static")
    )
    return float(orca / static)


def normalised_ms(rate: float, settings: Sequence[str]) -> float:
    """Mean end-to-end latency a token of `vllm-vs-reservation`."""
    rated = f"workload.arrivals.request_rate={rate}"
    return float(summary_of("vllm-vs-reservation", rated, *settings)["mean_normalized_latency_ms"])


def most_load(settings: Sequence[str]) -> float:
    """The highest of the rates at which latency has not taken off."""
    return max(rate for rate in RATES if normalised_ms(rate, settings) < SATURATED_MS)


def batching() -> None:
    print("Iteration-level over request-level batching, output tokens/s\n")
    gains = [f"{orca_over_static(sigma):.1f}" for sigma in SIGMAS]
    table(["sigma of output lengths", *map(str, SIGMAS)], [["orca / static", *gains]])
    print(f"Requests/s below {SATURATED_MS} ms a token\n")
    loads = {name: most_load(settings) for name, settings in ENGINES.items()}
    rows = [[name, f"{load:.1f}", f"{loads['vLLM'] / load:.1f}"] for name, load in loads.items()]
    table(["memory", "requests/s", "vLLM carries"], rows)
    print("Chunked prefill\n")
    rows = []
    runs = {f"chunks, budget {n}": (f"engine.max_num_batched_tokens={n}",) for n in BUDGETS}
    for label, settings in {"whole prompts first": WHOLE_PROMPTS, **runs}.items():
        found = summary_of("chunked-prefill-stalls", *settings)
        keys = ("p99_itl_ms", "max_itl_ms", "p99_tpot_ms", "mean_ttft_ms")
        rows.append([label, *(f"{found[key]:,.0f}" for key in keys)])
    table(["", "p99 ITL (ms)", "longest gap", "p99 TPOT", "mean TTFT"], rows)


# -- sharing and memory ---------------------------------------------------------------------------


def saved(name: str, setting: str, count: int, lengths: Sequence[str]) -> float:
    """The share of KV memory that sharing saves, in per cent."""
    found = summary_of(name, f"{setting}={count}", *lengths)
    return 100.0 * float(found["kv_saved_by_sharing"])


def savings() -> dict[str, list[float]]:
    """By technique and lengths, for each of `COUNTS`."""
    kinds = {
        "parallel sampling": ("parallel-sampling", "workload.samples.n"),
        "beam search": ("beam-search", "workload.beam_search.width"),
    }
    return {
        f"{kind}, {text}": [saved(name, setting, count, settings) for count in COUNTS]
        for kind, (name, setting) in kinds.items()
        for text, settings in LENGTHS.items()
    }


def preemption_s(kind: str, block_size: int) -> float:
    """Seconds for all requests of scenario `preemption`."""
    settings = f"engine.preemption={kind}", f"engine.block_size={block_size}"
    return float(summary_of("preemption", *settings)["duration"])


def offloaded(gib: float) -> dict[str, Any]:
    return summary_of("kv-offload", f"engine.kv_offloading_size_gib={gib}")


def sharing() -> None:
    print("KV memory saved by sharing, %\n")
    rows = [[name, *(f"{share:.1f}" for share in shares)] for name, shares in savings().items()]
    table(["", *map(str, COUNTS)], rows)
    print("With and without the prefix cache\n")
    rows = []
    for name in ("system-prompt", "multi-turn"):
        for label, settings in {"on": (), "off": ("engine.enable_prefix_caching=false",)}.items():
            found = summary_of(name, *settings)
            rows.append(
                [
                    f"`{name}`",
                    label,
                    f"{found['prefix_cache_hit_rate']:.0%}",
                    f"{found['kv_saved_by_sharing']:.0%}",
                    f"{found['mean_ttft_ms']:,.0f}",
                    f"{found['p99_ttft_ms']:,.0f}",
                    f"{found['p99_tpot_ms']:.0f}",
                ]
            )
    head = ["scenario", "prefix cache", "hits", "KV saved", "mean TTFT (ms)", "p99", "p99 TPOT"]
    table(head, rows)
    print("Seconds to serve everything: swap and recompute\n")
    rows = [
        [kind, *(f"{preemption_s(kind, size):.0f}" for size in BLOCK_SIZES)]
        for kind in ("swap", "recompute")
    ]
    table(["tokens a block", *map(str, BLOCK_SIZES)], rows)
    print("One victim, ms: swapped out and in with blocks of 16 and of 64, computed again\n")
    rows = [
        [
            str(tokens),
            *(f"{one_victim_ms(tokens, size)[0]:.0f}" for size in (16, 64)),
            f"{one_victim_ms(tokens, 16)[1]:.0f}",
        ]
        for tokens in (50, 100, 200, 500, 1000, 2000)
    ]
    table(["tokens", "swap, 16", "swap, 64", "recompute"], rows)
    print("Offloading\n")
    rows = []
    for gib in HOST_GIB:
        found = offloaded(gib)
        moved = found["swapped_blocks"] - found["loaded_blocks"]
        rows.append(
            [
                str(gib),
                f"{found['prefix_cache_hit_rate']:.0%}",
                f"{moved:,}",
                f"{found['loaded_blocks']:,}",
                f"{found['mean_ttft_ms']:,.0f}",
                f"{found['p99_ttft_ms']:,.0f}",
            ]
        )
    head = ["host GiB", "hits", "blocks out", "blocks in", "mean TTFT (ms)", "p99"]
    table(head, rows)


# -- figures --------------------------------------------------------------------------------------


def chart(titles: Sequence[str], heading: str) -> Any:
    from plotly.subplots import make_subplots

    drawn = make_subplots(cols=3, horizontal_spacing=0.075, subplot_titles=tuple(titles))
    drawn.update_layout(
        title={"text": heading, "x": 0.01},
        font={"family": FONT, "size": 13, "color": PALETTE["ink"][0]},
        plot_bgcolor="white",
        width=1200,
        height=430,
        margin={"l": 60, "r": 20, "t": 84, "b": 56},
        showlegend=False,
    )
    return drawn


def line(drawn: Any, column: int, x: Sequence[Any], y: Sequence[float], tone: str) -> None:
    import plotly.graph_objects as go

    mark = {"color": PALETTE[tone][0], "width": 2}
    drawn.add_trace(
        go.Scatter(x=list(x), y=list(y), mode="lines+markers", line=mark), row=1, col=column
    )


def label(
    drawn: Any, column: int, at: tuple[Any, float], text: str, tone: str, **place: Any
) -> None:
    name = "" if column == 1 else str(column)
    drawn.add_annotation(
        x=at[0], y=at[1], text=text, xref=f"x{name}", yref=f"y{name}", showarrow=False,
        font={"color": PALETTE[tone][0], "size": 12}, **place,
    )  # fmt: skip


def axes(drawn: Any, titles: Mapping[int, tuple[str, str]]) -> None:
    grid = PALETTE["grid"][0]
    for column, (x, y) in titles.items():
        drawn.update_xaxes(title_text=x, col=column, gridcolor=grid, linecolor=PALETTE["edge"][0])
        drawn.update_yaxes(title_text=y, col=column, gridcolor=grid, rangemode="tozero")


def batching_figure(path: Path) -> None:
    drawn = chart(
        ("Orca over static batching", "paged over reserved memory", "chunked prefill"),
        "What batching policies buy (roofline, unmeasured)",
    )
    gains = [orca_over_static(sigma) for sigma in SIGMAS]
    line(drawn, 1, SIGMAS, gains, "accent")
    for (name, settings), tone in zip(ENGINES.items(), COLOURS, strict=True):
        times = [normalised_ms(rate, settings) for rate in RATES]
        line(drawn, 2, RATES, times, tone)
        # Where the line passes the height of its label.
        after = next(i for i, time_ms in enumerate(times) if time_ms > LABEL_MS)
        share = (LABEL_MS - times[after - 1]) / (times[after] - times[after - 1])
        at = RATES[after - 1] + share * (RATES[after] - RATES[after - 1])
        label(drawn, 2, (at, LABEL_MS), name, tone, textangle=-90, xshift=-11)
    drawn.update_yaxes(range=(0, 165), col=2)
    budgets = [str(n) for n in BUDGETS]
    runs = [
        summary_of("chunked-prefill-stalls", f"engine.max_num_batched_tokens={n}") for n in BUDGETS
    ]
    whole = summary_of("chunked-prefill-stalls", *WHOLE_PROMPTS)
    for key, tone, text in (("p99_itl_ms", "accent", "p99 ITL"), ("mean_ttft_ms", "e2e", "TTFT")):
        values = [run[key] for run in runs]
        line(drawn, 3, budgets, values, tone)
        at, up = (1, 12) if key == "mean_ttft_ms" else (3, -12)
        place = {"xanchor": "left", "yshift": up, "xshift": 6}
        label(drawn, 3, (at, values[at]), f"{text}, in chunks", tone, **place)
        drawn.add_hline(y=whole[key], line={"color": PALETTE[tone][0], "dash": "dot"}, col=3, row=1)
        text = f"{text}, whole prompts first"
        label(drawn, 3, (-0.4, whole[key]), text, tone, xanchor="left", yshift=-11)
    axes(
        drawn,
        {
            1: ("sigma of the outputs' log-normal length", "output tokens/s, orca / static"),
            2: ("requests per second", "latency a token (ms)"),
            3: ("token budget", "ms"),
        },
    )
    drawn.update_xaxes(type="category", col=3)
    drawn.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def sharing_figure(path: Path) -> None:
    drawn = chart(
        ("KV memory saved by sharing", "swap or recompute", "offloading idle conversations"),
        "What sharing and host memory buy (roofline, unmeasured)",
    )
    for (name, shares), tone in zip(savings().items(), COLOURS, strict=True):
        line(drawn, 1, COUNTS, shares, tone)
        label(drawn, 1, (4, shares[1]), name, tone, xanchor="left", yshift=-14, xshift=-8)
    sizes = [str(size) for size in BLOCK_SIZES]
    for kind, tone in (("swap", "accent"), ("recompute", "prefill")):
        times = [preemption_s(kind, size) for size in BLOCK_SIZES]
        line(drawn, 2, sizes, times, tone)
        at, value = (0, times[0]) if kind == "swap" else (8, times[8])
        side = "left" if kind == "swap" else "right"
        label(drawn, 2, (at, value), kind, tone, xanchor=side, xshift=8 if at == 0 else -8)
    hosts = [str(gib) for gib in HOST_GIB]
    runs = [offloaded(gib) for gib in HOST_GIB]
    line(drawn, 3, hosts, [run["mean_ttft_ms"] for run in runs], "accent")
    for number, run in enumerate(runs):
        text = f"{run['prefix_cache_hit_rate']:.0%}"
        place = {"xanchor": "left", "xshift": 8, "yshift": 8}
        label(drawn, 3, (number, run["mean_ttft_ms"]), text, "ink", **place)
    axes(
        drawn,
        {
            1: ("samples, or beam width", "% of what each would hold on its own"),
            2: ("tokens a block", "seconds to serve all"),
            3: ("host memory (GiB); at points: cache hits", "mean TTFT (ms)"),
        },
    )
    for column in (2, 3):
        drawn.update_xaxes(type="category", col=column)
    drawn.update_xaxes(tickvals=COUNTS, range=(1.6, 6.4), col=1)
    drawn.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--figures", type=Path, help="write the figures' pages to this folder")
    given = parser.parse_args()
    batching()
    sharing()
    if given.figures is not None:
        given.figures.mkdir(parents=True, exist_ok=True)
        batching_figure(given.figures / "batching.html")
        sharing_figure(given.figures / "sharing.html")
        print(f"Figures: {given.figures}")


if __name__ == "__main__":
    main()
