"""The charts of a report as still pictures, for slides: PNG or SVG, one file a chart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.page.page import Figure
from reports.page.style import PALETTE, colour, template
from scenarios.whole import filled_folder

WIDTH_PX = 960
SCALE = 2  # PNG pixels per point, so that a slide stays sharp


def picture_paths(folder: Path, figures: Sequence[Figure], kind: str) -> list[Path]:
    """``<name>.<kind>`` for every figure."""
    return [folder / f"{figure.name}.{kind}" for figure in figures]


def write_images(folder: Path, figures: Sequence[Figure], kind: str) -> list[Path]:
    """Write ``<name>.<kind>`` for every one of `figures`; returns the files.

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

    with filled_folder(folder) as partial:
        try:
            plotly.io.write_images(
                [go.Figure(_still(figure)) for figure in figures],
                picture_paths(partial, figures, kind),
                width=WIDTH_PX,
                height=[figure.layout["height"] + 90 for figure in figures],
                scale=SCALE if kind == "png" else 1,
            )
        except Exception as error:  # kaleido raises what its browser raised
            if "hrome" in str(error) or "rowser" in str(error):
                raise RuntimeError(f"pictures need a Chromium on PATH: {error}") from None
            raise
    return picture_paths(folder, figures, kind)


def _still(figure: Figure) -> dict[str, Any]:
    """The figure with what the page shows around it: title, legend, a white ground."""
    labels = {trace: key.label for key in figure.keys for trace in key.traces}
    data = [
        {**trace, "name": labels.get(number, trace.get("name", "")), "showlegend": number in labels}
        for number, trace in enumerate(figure.data)
    ]
    data += [  # colours within one trace, which Plotly's own legend cannot tell
        {
            "type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": key.label,
            "marker": {"color": colour(key.colour), "symbol": "square", "size": 10},
            "showlegend": True,
        }
        for key in figure.keys
        if not key.traces
    ]  # fmt: skip
    layout = dict(figure.layout)
    layout |= {
        "template": template(dark=False),
        "title": {"text": figure.title, "x": 0, "xref": "paper", "font": {"size": 18}},
        "paper_bgcolor": PALETTE["surface"][0],
        "showlegend": bool(figure.keys),
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {**layout.get("margin", {}), "t": 84},
    }
    return {"data": data, "layout": layout}
