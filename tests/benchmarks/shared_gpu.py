"""What several models on one GPU cost each other: a table and a figure from `several-models`.

    python -m tests.benchmarks.shared_gpu [--figures FOLDER]

Every figure is a simulated run. `--figures` writes shared-gpu.html, which
docs/images/shared-gpu.png is a picture of (1200 x 430 pixels).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import orcast
from tests.benchmarks.sharing import axes, chart, label, line

RATES = (0.5, 1, 2, 3, 4)
APART = [
    {"name": "chat", "replicas": 1, "classes": ["chat"],
     "engine": {"gpu_memory_utilization": 0.35}},
    {"name": "code", "replicas": 1, "classes": ["code"], "model": "llama-3.1-8b",
     "engine": {"gpu_memory_utilization": 0.55}},
]  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "time slices": {},
    "turns": {"cluster.gpu_sharing": "turns"},
    "a GPU each": {"cluster.groups": APART},
}
TONES = ("accent", "prefill", "muted")


def tpot_ms(rate: float, settings: dict[str, Any]) -> dict[str, float]:
    """Mean TPOT of each class."""
    run = orcast.simulate(
        "several-models",
        overrides={"workload.arrivals.request_rate": rate, "workload.num_requests": 600} | settings,
    )
    return {name: found["mean_tpot_ms"] for name, found in run.summary["classes"].items()}


def figure(path: Path, found: dict[str, list[dict[str, float]]]) -> None:
    drawn = chart(
        ("chat: a model of 3B", "code: a model of 8B", ""),
        "Two models on one A100, or on one each (roofline, unmeasured)",
    )
    for (way, points), tone in zip(found.items(), TONES, strict=True):
        for column, kind in enumerate(("chat", "code"), start=1):
            values = [point[kind] for point in points]
            line(drawn, column, RATES, values, tone)
            label(drawn, column, (RATES[-1], values[-1]), way, tone, xanchor="right", yshift=14)
    axes(
        drawn,
        {
            1: ("requests per second", "mean TPOT (ms)"),
            2: ("requests per second", "mean TPOT (ms)"),
        },
    )
    drawn.update_layout(xaxis={"domain": (0, 0.46)}, xaxis2={"domain": (0.54, 1)})
    drawn.update_xaxes(visible=False, col=3)
    drawn.update_yaxes(visible=False, col=3)
    for note in drawn.layout.annotations[:2]:
        note.x = 0.23 if note.text.startswith("chat") else 0.77
    drawn.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--figures", type=Path, help="write the figure's page to this folder")
    given = parser.parse_args()
    found = {way: [tpot_ms(rate, how) for rate in RATES] for way, how in WAYS.items()}
    print("| requests/s | " + " | ".join(WAYS) + " |\n|--:|" + "--:|" * len(WAYS))
    for row, rate in enumerate(RATES):
        cells = [f"{f[row]['chat']:.1f} / {f[row]['code']:.1f}" for f in found.values()]
        print(f"| {rate:g} | " + " | ".join(cells) + " |")
    if given.figures is not None:
        given.figures.mkdir(parents=True, exist_ok=True)
        figure(given.figures / "shared-gpu.html", found)


if __name__ == "__main__":
    main()
