"""A sweep's table in a notebook: as a pandas DataFrame, and that as a Plotly figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reports.page.page import Figure
from reports.sweep.figures import heat_map, lines, points
from scenarios.errors import did_you_mean
from scenarios.sweep.table import SweepTable

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure as PlotlyFigure

_KEPT = "orcast_sweep"  # where a DataFrame keeps what its columns do not say


def frame_of(table: SweepTable) -> DataFrame:
    """A row for each run. `frame_of` and `table_of` are each other's inverse."""
    import pandas as pd

    frame = pd.DataFrame(table.columns)
    frame.attrs[_KEPT] = {
        "name": table.name,
        "description": table.description,
        "axes": [list(paths) for paths in table.axes],
        "sampling": table.sampling,
        "confidence": table.confidence,
        "metrics": list(table.metrics),
    }
    return frame


def table_of(frame: DataFrame) -> SweepTable:
    """The sweep a DataFrame came from, with the rows it still has. Raises ValueError for others."""
    kept = frame.attrs.get(_KEPT)
    if kept is None:
        raise ValueError("not a DataFrame of orcast.sweep: it lost its attrs; keep the original")
    paths = [path for axis in kept["axes"] for path in axis]
    missing = [name for name in ("setting", "seed", "error", *paths) if name not in frame.columns]
    if missing:
        raise ValueError(f"the DataFrame lacks the column {missing[0]!r}")
    columns = {str(name): _values(frame[name]) for name in frame.columns}
    settings = {number: at for at, number in enumerate(dict.fromkeys(columns["setting"]))}
    columns["setting"] = [settings[number] for number in columns["setting"]]
    return SweepTable(
        name=kept["name"],
        description=kept["description"],
        axes=tuple(tuple(axis) for axis in kept["axes"]),
        sampling=kept["sampling"],
        confidence=kept["confidence"],
        metrics=tuple(kept["metrics"]),
        columns=columns,
    )


def _values(column: Any) -> list[Any]:
    missing = column.isna().tolist()
    return [None if gone else one for one, gone in zip(column.tolist(), missing, strict=True)]


def figure_of_frame(
    frame: DataFrame, metric: str | None, x: str | None, y: str | None
) -> PlotlyFigure:
    """A heat map over two axes, or lines along one. Raises ValueError for what is not there."""
    table = table_of(frame)
    if not table.num_runs:
        raise ValueError("the DataFrame has no rows")
    shown = _figure(table, metric or table.metrics[0], x, y)
    for trace in shown.data:
        if not trace.get("name"):
            trace["showlegend"] = False
    return shown.as_plotly(
        title={"text": shown.title, "font": {"size": 15}},
        plot_bgcolor="#ffffff",
        paper_bgcolor="#ffffff",
    )


def _figure(table: SweepTable, metric: str, x: str | None, y: str | None) -> Figure:
    if metric not in table.figures:
        raise ValueError(f"no figure {metric!r}; {did_you_mean(metric, table.figures)}")
    if y is not None and x is None:
        raise ValueError("y without x: name both axes of a heat map")
    along = 0 if x is None else _axis(table, x)
    other = None if y is None else _axis(table, y)
    if other == along:
        raise ValueError(f"x and y are the same axis, {x}")
    if table.sampling == "latin_hypercube":
        if other is not None:
            raise ValueError("drawn settings have no cells: leave y out")
        return points(table, metric, along)
    if x is None and len(table.axes) > 1:
        other = 1
    if other is not None:
        return heat_map(table, metric, along, other)
    rest = [axis for axis in range(len(table.axes)) if axis != along]
    return lines(table, metric, along, rest[0] if rest else None)


def _axis(table: SweepTable, path: str) -> int:
    for axis, paths in enumerate(table.axes):
        if path in paths or path == " + ".join(paths):
            return axis
    known = [path for paths in table.axes for path in paths]
    raise ValueError(f"no axis {path!r}; {did_you_mean(path, known)}")
