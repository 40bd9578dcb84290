"""A cluster replica by replica: unfinished requests over time, work, busy time, latency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.page.figures import TimeAxis, chart_layout
from reports.page.page import Figure, Key, plotly_text
from reports.page.records import Columns, Floats, request_latencies
from reports.page.style import colour
from reports.page.timeline import Timeline
from scenarios.quantity import compact, percent, plain

ROLE_COLOURS = {"prefill": "prefill", "decode": "decode"}
_MAX_BINS = 200
_MAX_LABELLED = 24


@dataclass(frozen=True, slots=True)
class Replicas:
    """The replicas of a run by number: their names and roles, and when they were down.

    Those behind the last that an autoscaler ever started are left out.
    """

    names: tuple[str, ...]
    roles: tuple[str, ...]
    down_s: tuple[tuple[int, float, float | None], ...]  # replica, from, to (None: for good)
    up_over_time: tuple[tuple[float, int], ...]  # (since, replicas that take requests)
    busy_share: tuple[float, ...]
    never_started: int = 0

    @classmethod
    def of(
        cls, scenario: Mapping[str, Any], summary: Mapping[str, Any], iterations: Columns
    ) -> "Replicas":
        """As the summary's ``cluster`` and the scenario's tell; by number where they do not."""
        facts, given = _mapping(summary, "cluster"), _mapping(scenario, "cluster")
        seen = np.asarray(iterations["replica"])
        number = int(facts.get("replicas") or 0) or (int(seen.max()) + 1 if seen.size else 1)
        up = [(float(step[0]), int(step[1])) for step in _sequence(facts.get("replicas_over_time"))]
        asked = number
        if _mapping(given, "autoscaling") and up:
            ran = int(seen.max()) + 1 if seen.size else 1
            number = min(asked, max(ran, *(running for _, running in up)))
        roles = ["both"] * number
        names = [f"replica {replica}" for replica in range(number)]
        at = 0
        groups = [g for g in _sequence(facts.get("groups")) if isinstance(g, Mapping)]
        for group in groups:
            size = int(group.get("replicas") or 0)
            role, name = str(group.get("role") or "both"), str(group.get("name") or "")
            for replica in range(at, min(at + size, number)):
                roles[replica] = role
                named = role if role != "both" else name if len(groups) > 1 else ""
                names[replica] = f"{named} {replica}" if named else f"replica {replica}"
            at += size
        down = []
        for failure in _sequence(given.get("failures")):
            if isinstance(failure, Mapping) and isinstance(failure.get("at_s"), (int, float)):
                begin, after = float(failure["at_s"]), failure.get("recover_after_s")
                end = begin + float(after) if isinstance(after, (int, float)) else None
                down.append((int(failure.get("replica") or 0), begin, end))
        busy = [float(share) for share in _sequence(facts.get("busy_share"))][:number]
        return cls(tuple(names), tuple(roles), tuple(down), tuple(up), tuple(busy), asked - number)

    def thing(self, replica: int) -> str:
        """Whose colour a replica's bars have."""
        return ROLE_COLOURS.get(self.roles[replica], "running")


def _mapping(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = of.get(key)
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def replica_load(
    replicas: Replicas, iterations: Columns, edges_s: Floats, axis: TimeAxis
) -> Figure:
    """Unfinished requests (running and waiting) on each replica over time, as a heat map."""
    if edges_s.size - 1 > _MAX_BINS:
        edges_s = np.linspace(0.0, float(edges_s[-1]), _MAX_BINS + 1)
    unfinished = {
        **iterations,
        "unfinished": np.asarray(iterations["running"]) + np.asarray(iterations["waiting"]),
    }
    numbers = np.asarray(iterations["replica"])
    rows: list[Floats] = []
    for replica in range(len(replicas.names)):
        mine = np.flatnonzero(numbers == replica)
        own = {name: column[mine] for name, column in unfinished.items()}
        if mine.size:
            rows.append(Timeline.over(own, edges_s).mean("unfinished"))
        else:
            rows.append(np.zeros(edges_s.size - 1))
    top = max(1.0, max(float(row.max()) for row in rows))
    data: list[dict[str, Any]] = [
        {
            "type": "heatmap",
            "name": "Unfinished",
            "x": axis.positions(edges_s),
            "y": list(range(len(rows))),
            "z": [compact(row, 3) for row in rows],
            "zmin": 0,
            "zmax": float(f"{top:.3g}"),
            "colorscale": [[0, colour("surface")], [1, colour("running")]],
            "colorbar": {
                "orientation": "h",
                "x": 1,
                "xanchor": "right",
                "y": 1,
                "yanchor": "bottom",
                "ypad": 6,
                "len": 180,
                "lenmode": "pixels",
                "thickness": 8,
                "outlinewidth": 0,
                "tickformat": "~s",
                "tickfont": {"size": 12, "color": colour("muted")},
                "nticks": 4,
            },
            "xgap": 0,
            "ygap": 2,
            "customdata": [[plotly_text(name)] * (edges_s.size - 1) for name in replicas.names],
            "hovertemplate": (
                f"%{{customdata}}: %{{z:.3~g}} unfinished<br>at %{{x:.4~g}} {axis.unit[0]}"
                "<extra></extra>"
            ),
        }
    ]
    keys: tuple[Key, ...] = ()
    outages = [down for down in replicas.down_s if down[0] < len(rows) and down[1] < axis.end_s]
    if outages:
        keys = (Key("Failed", "bad", (1,)),)
        data.append(_outages(outages, axis))
    layout = chart_layout(
        x=axis.layout(), y=_replica_axis(replicas), height_px=_height_px(len(rows)), left_px=96
    )
    layout["hovermode"] = "closest"
    layout["margin"]["t"] = 42
    # What the colours count. A title of the colour bar's own would lose its place on resizing.
    layout["annotations"] = [
        {
            "xref": "paper",
            "yref": "paper",
            "x": 1,
            "y": 1,
            "xanchor": "right",
            "yanchor": "bottom",
            "xshift": -188,
            "yshift": 20,
            "text": "requests",
            "showarrow": False,
            "font": {"size": 12, "color": colour("muted")},
        }
    ]
    requests_each = np.array([float((row * np.diff(edges_s)).sum()) for row in rows])
    mean = requests_each / float(edges_s[-1])
    failed = (
        f" Down: {len(outages)} failure{'s' if len(outages) > 1 else ''}, marked."
        if outages
        else ""
    )
    return Figure(
        "replica-load",
        "Unfinished requests by replica",
        f"Running and waiting, averaged over time: from {plain(float(mean.min()))} on the least "
        f"loaded replica to {plain(float(mean.max()))} on the most.{failed}",
        data,
        layout,
        keys,
        group="time",
    )


def _outages(down: list[tuple[int, float, float | None]], axis: TimeAxis) -> dict[str, Any]:
    """A thick line through a replica's row while it is down."""
    x: list[float | None] = []
    y: list[int | None] = []
    size_s = axis.unit[1]
    for replica, begin_s, end_s in down:
        stop_s = axis.end_s if end_s is None else min(end_s, axis.end_s)
        x += [float(f"{begin_s / size_s:.6g}"), float(f"{stop_s / size_s:.6g}"), None]
        y += [replica, replica, None]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "Failed",
        "x": x,
        "y": y,
        "line": {"color": colour("bad"), "width": 4},
        "marker": {"symbol": "x", "size": 9, "color": colour("bad")},
        "hovertemplate": f"replica %{{y}} is down at %{{x:.4~g}} {axis.unit[0]}<extra></extra>",
    }


def _replica_axis(replicas: Replicas) -> dict[str, Any]:
    total = len(replicas.names)
    step = -(-total // _MAX_LABELLED)
    shown = list(range(0, total, step))
    return {
        "range": [total - 0.5, -0.5],
        "tickmode": "array",
        "tickvals": shown,
        "ticktext": [plotly_text(replicas.names[number][:14]) for number in shown],
        "showgrid": False,
        "zeroline": False,
    }


def _height_px(total: int) -> int:
    return 92 + total * (30 if total <= 8 else 20 if total <= 16 else 12 if total <= 32 else 8)


def replicas_up(replicas: Replicas, axis: TimeAxis) -> Figure | None:
    """How many replicas take requests, where that changed."""
    steps = [step for step in replicas.up_over_time if step[0] <= axis.end_s]
    if len({number for _, number in steps}) < 2:
        return None
    x = axis.positions(np.array([*(at_s for at_s, _ in steps), axis.end_s]))
    y = [*(number for _, number in steps), steps[-1][1]]
    most = max(number for _, number in steps)
    layout = chart_layout(
        x=axis.layout(),
        y={"title": {"text": "replicas"}, "range": [0, 1.1 * most], "tickformat": "d", "nticks": 6},
        height_px=200,
        left_px=96,
    )
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Taking requests",
            "x": x,
            "y": y,
            "line": {"shape": "hv", "color": colour("running"), "width": 2},
            "fill": "tozeroy",
            "fillcolor": colour("free"),
            "hovertemplate": "%{y} replicas take requests",
        }
    ]
    return Figure(
        "replicas-up",
        "Replicas that take requests",
        "Started, drained, failed and recovered replicas change the number; one that starts takes "
        "requests when it is ready.",
        data,
        layout,
        group="time",
    )


def replica_bars(replicas: Replicas, requests: Columns, iterations: Columns) -> tuple[Figure, ...]:
    """Busy share, work and mean E2E of each replica, side by side."""
    number = len(replicas.names)
    of = np.asarray(iterations["replica"])
    figures = []
    if len(replicas.busy_share) == number:
        busy = 100 * np.array(replicas.busy_share)
        figures.append(
            _bars(
                "replica-busy",
                "Busy share",
                f"An iteration runs, of the time the replica is up: {percent(busy.min() / 100)} "
                f"to {percent(busy.max() / 100)}.",
                replicas,
                [("Busy", None, busy)],
                "% of its time",
                "%{y:.3~g} % busy",
            )
        )
    tokens: list[Floats] = [
        np.bincount(of, np.asarray(iterations[name], dtype=np.float64), number)[:number].astype(
            np.float64
        )
        for name in ("prefill_tokens", "decode_seqs")
    ]
    whole = tokens[0] + tokens[1]
    figures.append(
        _bars(
            "replica-tokens",
            "Tokens computed",
            f"The busiest computes {plain(float(whole.max() / max(whole.mean(), 1e-300)))} times "
            "the mean.",
            replicas,
            [("Decode", "decode", tokens[1]), ("Prefill", "prefill", tokens[0])],
            "tokens",
            "%{y:.4~s} tokens",
        )
    )
    e2e = _mean_e2e_s(requests, number)
    known = e2e[np.isfinite(e2e)]
    if known.size:
        unit, size_s = ("s", 1.0) if known.max() >= 1 else ("ms", 1e-3)
        served = int(np.isfinite(e2e).sum())
        whose = " (the replica that returned the answer)" if served < number else ""
        figures.append(
            _bars(
                "replica-e2e",
                "Mean end-to-end latency",
                f"Of the requests it answered{whose}: {plain(float(known.min()) / size_s)} to "
                f"{plain(float(known.max()) / size_s)} {unit}.",
                replicas,
                [("E2E", "e2e", np.where(np.isfinite(e2e), e2e, 0.0) / size_s)],
                f"mean E2E ({unit})",
                f"%{{y:.4~g}} {unit}",
            )
        )
    return tuple(figures)


def _mean_e2e_s(requests: Columns, number: int) -> Floats:
    """Mean E2E of the requests of each replica; NaN where it answered none."""
    finished_s = np.asarray(requests["finished_s"], dtype=np.float64)
    done = np.isfinite(finished_s) & np.isfinite(np.asarray(requests["first_token_s"], float))
    of = np.asarray(requests["replica"])[done]
    counts = np.bincount(of, minlength=number)[:number]
    sums = np.bincount(of, request_latencies(requests).e2e_s, number)[:number]
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return mean


def _bars(
    name: str,
    title: str,
    caption: str,
    replicas: Replicas,
    series: list[tuple[str, str | None, Floats]],
    unit: str,
    hover: str,
) -> Figure:
    """Bars by replica, stacked; a series without a colour of its own has that of the roles."""
    total = len(replicas.names)
    names = [plotly_text(one) for one in replicas.names]
    data = [
        {
            "type": "bar",
            "name": label,
            "x": list(range(total)),
            "y": compact(values, 4),
            "customdata": names,
            "marker": {
                "color": colour(thing)
                if thing
                else [colour(replicas.thing(number)) for number in range(total)],
                "line": {"width": 0},
            },
            "hovertemplate": f"%{{customdata}}: {hover}<extra>{label}</extra>",
        }
        for label, thing, values in series
    ]
    top = float(sum(values for _, _, values in series).max())  # type: ignore[union-attr]
    layout = chart_layout(
        x={
            "title": {"text": "Replica"},
            "range": [-0.6, total - 0.4],
            "tickformat": "d",
            **({"dtick": 1} if total <= 12 else {"nticks": 8}),
        },
        y={
            "title": {"text": unit},
            "tickformat": "~s" if top >= 10_000 else "~g",
            "rangemode": "tozero",
        },
        height_px=240,
        left_px=58,
    )
    layout |= {"barmode": "stack", "bargap": 0.25, "hovermode": "closest"}
    keys: tuple[Key, ...] = ()
    if len(series) > 1:
        keys = tuple(
            Key(label, thing or "ink", (at,)) for at, (label, thing, _) in enumerate(series)
        )
    return Figure(name, title, caption, data, layout, keys)
