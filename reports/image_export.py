"""The charts of a report as still pictures, for slides: PNG or SVG, one file a chart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.page import Figure, Section
from reports.style import PALETTE, template

WIDTH_PX = 960
SCALE = 2  # PNG pixels per point, so that a slide stays sharp


def write_images(folder: Path, sections: Sequence[Section], kind: str) -> list[Path]:
    """Write ``<name>.<kind>`` for every figure of `sections`; returns the files.

    Raises RuntimeError, in words, where the package kaleido or a Chromium for it is missing.
    """
    try:
        import kaleido  # noqa: F401
    except ModuleNotFoundError:
        raise RuntimeError(
            "pictures need the package kaleido: pip install 'orcast[images]'"
        ) from None
    import plotly.graph_objects as go
    import plotly.io

    figures = [figure for section in sections for figure in section.figures]
    paths = [folder / f"{figure.name}.{kind}" for figure in figures]
    try:
        plotly.io.write_images(
            [go.Figure(_still(figure)) for figure in figures],
            paths,
            width=WIDTH_PX,
            height=[figure.layout["height"] + 90 for figure in figures],
            scale=SCALE if kind == "png" else 1,
        )
    except Exception as error:  # kaleido raises what its browser raised
        if "hrome" in str(error) or "rowser" in str(error):
            raise RuntimeError(f"pictures need a Chromium on PATH: {error}") from None
        raise
    return paths


def _still(figure: Figure) -> dict[str, Any]:
    """The figure with what the page shows around it: title, legend, a white ground."""
    labels = {trace: key.label for key in figure.keys for trace in key.traces}
    data = [
        {**trace, "name": labels.get(number, trace.get("name", "")), "showlegend": number in labels}
        for number, trace in enumerate(figure.data)
    ]
    layout = dict(figure.layout)
    layout |= {
        "template": template(dark=False),
        "title": {"text": figure.title, "x": 0, "xref": "paper", "font": {"size": 18}},
        "paper_bgcolor": PALETTE["surface"][0],
        "showlegend": bool(labels),
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {**layout.get("margin", {}), "t": 84},
    }
    return {"data": data, "layout": layout}
