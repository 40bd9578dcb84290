"""The page of fitted laws: bands and runs, and for each file the ways to the best size."""

from __future__ import annotations

from typing import Any

from reports.page.page import Figure, Key, Row, Section, escape, page, panel, table
from reports.run.report import FOOTER
from reports.size.figures import chart_of, dots, line, log_axis
from reports.size.law_rows import Figures, amount, comparison_words, law_tables
from reports.size.text import power, short

COLOURS = ("decode", "prefill", "running", "preempted")


def law_report(figures: Figures) -> str:
    """Build the page from what `orcast laws --json` prints: HTML that needs only a browser."""
    names = " and ".join(law["name"] for law in figures["laws"])
    words = comparison_words(figures) if "comparison" in figures else ""

    top = (
        '<header class="top"><p class="kind">Scaling laws</p>'
        f"<h1>{escape(names)}</h1>"
        f'<p class="verdict">{escape(words)}</p></header>'
    )
    tables = [panel(table(head, rows)) for head, rows in law_tables(figures)]
    charts: list[str | Figure | Row] = [bands(figures)]
    for law in figures["laws"]:
        found = law.get("growth", {})
        drawn = [
            chart(law, found[way]["points"])
            for way, chart in (("iso_flops", parabolas), ("envelope", envelope))
            if found.get(way, {}).get("points")
        ]
        if drawn:
            charts.append(Row(tuple(drawn)))
    sections = [
        Section("laws", "Loss, with its interval", charts, link="Laws"),
        Section("figures", "Figures", list(tables), link="Figures"),
    ]
    return page(title=f"{names} · Orcast", top=top, sections=sections, footer=FOOTER)


def bands(figures: Figures) -> Figure:
    """Each law, its interval (dashed) and its runs."""
    data: list[dict[str, Any]] = []
    keys = []
    for law, thing in zip(figures["laws"], COLOURS, strict=False):
        band, first = law["band"], len(data)
        data.append(line(law["name"], band["x"], band["loss"], thing))
        for side in ("low", "high"):
            edge = line(f"{law['name']}, {law['confidence']:.0%}", band["x"], band[side], thing)
            edge["line"] = edge["line"] | {"dash": "dot", "width": 1}
            data.append(edge)
        points = law["points"]
        said = [
            f"{amount(figures['axis'], x)}, loss {loss:.4g}"
            for x, loss in zip(points["x"], points["loss"], strict=True)
        ]
        data.append(dots(law["name"], points["x"], points["loss"], thing, said))
        data[-1]["marker"] = data[-1]["marker"] | {"size": 5}
        keys.append(Key(law["name"], thing, tuple(range(first, len(data)))))
    x = figures["laws"][0]["band"]["x"]
    axis = figures["axis"]
    return Figure(
        "laws",
        "What the laws foretell",
        "Lines are the laws, dotted lines their intervals, dots the runs. Over FLOPs a law is "
        "drawn at the best size for each budget, so runs of other sizes lie above it.",
        data,
        chart_of(
            log_axis(
                "FLOPs" if axis == "flops" else axis, min(x), max(x), power_ticks=axis == "flops"
            ),
            {"title": {"text": "loss"}, "type": "log"},
        ),
        tuple(keys),
    )


def parabolas(law: Figures, points: list[Figures]) -> Figure:
    """Loss over size at equal FLOPs, each with its parabola's minimum."""
    data: list[dict[str, Any]] = []
    for one in points:
        name = f"{power(one['flops'])} FLOPs"
        data.append(line(name, one["sizes"], one["losses"], "held"))
        text = f"{name}: best at {short(one['parameters'])} parameters, loss {one['loss']:.4g}"
        data.append(dots(name, [one["parameters"]], [one["loss"]], "decode", [text]))
    sizes = [size for one in points for size in one["sizes"]]
    return Figure(
        f"parabolas-{law['name']}",
        f"{law['name']}: sizes at equal FLOPs",
        "Each line joins runs of one budget; the dot is the minimum of a parabola through them.",
        data,
        chart_of(log_axis("parameters", min(sizes), max(sizes)), {"title": {"text": "loss"}}),
    )


def envelope(law: Figures, points: list[Figures]) -> Figure:
    """The best size along the lower envelope of the training curves."""
    flops = [one["flops"] for one in points]
    said = [
        f"{power(one['flops'])} FLOPs: {short(one['parameters'])} on {short(one['tokens'])} tokens"
        for one in points
    ]
    return Figure(
        f"envelope-{law['name']}",
        f"{law['name']}: the training curve that is lowest",
        "At each budget the run that has come lowest by then, and its loss.",
        [dots(law["name"], flops, [one["loss"] for one in points], "decode", said)],
        chart_of(
            log_axis("FLOPs", min(flops), max(flops), power_ticks=True), {"title": {"text": "loss"}}
        ),
    )
