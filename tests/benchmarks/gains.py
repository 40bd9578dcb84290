"""What continuous batching and paged memory buy: the engine's own measurement beside the forecast.

    python -m tests.benchmarks.gains --table DIR [--figures FOLDER] [--out FILE]

Serves `validation/continuous-vs-static` and `validation/paging-vs-reservation` for real under each
policy and forecasts the same from a latency table that never saw them: output tokens/s against the
spread of output lengths (Orca, OSDI 2022), and the share of occupied KV memory that holds tokens
(PagedAttention, SOSP 2023, figure 2). `--scenarios` takes the same questions to another model and
GPU; `--figures` writes gains.html, which docs/images/gains.png is a picture of (1200 x 430 pixels).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orcast.validate_cli import Question, ask_engine, load_model_of, question_of
from reports.page.style import PALETTE
from tests.benchmarks.sharing import axes, chart, line

SIGMAS = (0, 0.5, 1.0, 1.5)
POLICIES = {"static": ("engine.scheduler=static",), "continuous": ()}
RESERVED = ("engine.scheduler=orca", "engine.placement=anywhere")
MEMORY = {
    "reserved: longest sequence": (*RESERVED, "engine.reservation=max_model_len"),
    "reserved: next power of two": (*RESERVED, "engine.reservation=pow2"),
    "reserved: true length": (*RESERVED, "engine.reservation=oracle"),
    "paged": (),
}
FOLDER = Path(__file__).parents[2] / "scenarios" / "validation"
BATCHING = str(FOLDER / "continuous-vs-static.yaml")
PAGING = str(FOLDER / "paging-vs-reservation.yaml")


@dataclass(frozen=True, slots=True)
class Pair:
    """One setting, measured and forecast: output tokens/s, useful share of occupied KV slots."""

    tokens_per_s: tuple[float, float]
    kv_useful: tuple[float, float]
    mean_running: tuple[float, float]
    same_schedule: bool


class Bench:
    """Asks the engine and the forecast; the model is loaded once."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._model: Any = None

    def ask(self, scenario: str, *settings: str) -> Pair:
        question: Question = question_of(scenario, list(settings))
        if self._model is None:
            self._model = load_model_of(question)
        _, validation, measured, forecast = ask_engine(
            question, self._model, self._table, eos=False
        )
        both = (measured.summary, forecast.summary)
        return Pair(
            tokens_per_s=_of(both, "output_throughput"),
            kv_useful=_of(both, "kv_useful"),
            mean_running=_of(both, "mean_running"),
            same_schedule=validation.replay is not None and not validation.replay.differences,
        )


def _of(both: tuple[Any, Any], name: str) -> tuple[float, float]:
    return float(both[0][name]), float(both[1][name])


def batching(bench: Bench, scenario: str) -> dict[str, dict[float, Pair]]:
    """By policy and sigma of the outputs' lengths."""
    found: dict[str, dict[float, Pair]] = {name: {} for name in POLICIES}
    for sigma in SIGMAS:
        for name, settings in POLICIES.items():
            spread = f"workload.lengths.output.sigma={sigma}"
            found[name][sigma] = bench.ask(scenario, spread, *settings)
    print(
        "\n| sigma of output lengths | static, measured | forecast | continuous, measured ", end=""
    )
    print("| forecast | gain, measured | forecast |\n|--:|--:|--:|--:|--:|--:|--:|")
    for sigma in SIGMAS:
        old, new = found["static"][sigma].tokens_per_s, found["continuous"][sigma].tokens_per_s
        cells = [*old, *new]
        gains = [n / o for n, o in zip(new, old, strict=True)]
        told = " | ".join(f"{cell:,.0f}" for cell in cells)
        print(f"| {sigma} | {told} | {gains[0]:.2f} × | {gains[1]:.2f} × |", flush=True)
    return found


def paging(bench: Bench, scenario: str) -> dict[str, Pair]:
    """By way of giving out memory."""
    found = {name: bench.ask(scenario, *settings) for name, settings in MEMORY.items()}
    print("\n| memory | useful KV, measured | forecast | sequences, measured | forecast ", end="")
    print("| tokens/s, measured | forecast |\n|---|--:|--:|--:|--:|--:|--:|")
    for name, pair in found.items():
        useful = " | ".join(f"{share:.1%}" for share in pair.kv_useful)
        running = " | ".join(f"{count:.1f}" for count in pair.mean_running)
        rates = " | ".join(f"{rate:,.0f}" for rate in pair.tokens_per_s)
        print(f"| {name} | {useful} | {running} | {rates} |", flush=True)
    return found


def figure(path: Path, policies: dict[str, dict[float, Pair]], memory: dict[str, Pair]) -> None:
    """Measured as marks, forecast as lines or bars' outlines."""
    import plotly.graph_objects as go

    titles = ("output tokens/s", "gain over static", "useful share of occupied KV memory")
    drawn = chart(titles, "The engine (marks) and the forecast (lines, bars)")
    tones = {"static": "prefill", "continuous": "accent"}

    def marks(column: int, y: list[float], tone: str) -> None:
        style = {"color": PALETTE[tone][0], "size": 10, "symbol": "diamond"}
        drawn.add_trace(
            go.Scatter(x=list(SIGMAS), y=y, mode="markers", marker=style), row=1, col=column
        )

    for name, tone in tones.items():
        pairs = list(policies[name].values())
        line(drawn, 1, SIGMAS, [pair.tokens_per_s[1] for pair in pairs], tone)
        marks(1, [pair.tokens_per_s[0] for pair in pairs], tone)
        drawn.add_annotation(
            x=0.75, y=pairs[2].tokens_per_s[1], text=name, xref="x", yref="y", yshift=-22,
            xanchor="right", showarrow=False, font={"color": PALETTE[tone][0]},
        )  # fmt: skip
    gains = [
        [
            policies["continuous"][sigma].tokens_per_s[side]
            / policies["static"][sigma].tokens_per_s[side]
            for sigma in SIGMAS
        ]
        for side in (0, 1)
    ]
    line(drawn, 2, SIGMAS, gains[1], "accent")
    marks(2, gains[0], "accent")
    names = [name.replace(": ", "<br>", 1).replace(" ", "<br>") for name in memory]
    shares = [[100 * pair.kv_useful[side] for pair in memory.values()] for side in (0, 1)]
    drawn.add_trace(
        go.Bar(x=names, y=shares[1], marker={"color": PALETTE["accent"][0], "opacity": 0.45}),
        row=1, col=3,
    )  # fmt: skip
    style = {"color": PALETTE["accent"][0], "size": 10, "symbol": "diamond"}
    drawn.add_trace(go.Scatter(x=names, y=shares[0], mode="markers", marker=style), row=1, col=3)
    spread = "sigma of the outputs' log-normal length"
    axes(
        drawn,
        {
            1: (spread, "output tokens/s"),
            2: (spread, "continuous / static"),
            3: ("", "% holding tokens"),
        },
    )
    drawn.update_yaxes(range=(0, 105), col=3)
    drawn.update_xaxes(tickfont={"size": 11}, tickangle=0, col=3)
    drawn.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--scenarios", nargs=2, default=(BATCHING, PAGING))
    parser.add_argument("--figures", type=Path, help="write gains.html to this folder")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    given = parser.parse_args()
    bench = Bench(given.table)
    policies = batching(bench, given.scenarios[0])
    memory = paging(bench, given.scenarios[1])
    if given.figures is not None:
        given.figures.mkdir(parents=True, exist_ok=True)
        figure(given.figures / "gains.html", policies, memory)
    if given.out is not None:
        told = {
            "batching": {
                name: {str(sigma): asdict(pair) for sigma, pair in pairs.items()}
                for name, pairs in policies.items()
            },
            "paging": {name: asdict(pair) for name, pair in memory.items()},
        }
        given.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
