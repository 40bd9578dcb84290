"""Requests over time: queue, prefill, decode and preemption of whoever is alive in the window.

The page holds the times of all requests (of evenly chosen ones in very large runs) as whole
numbers; its script draws those that are alive in the window one zooms into. `lane_bars` draws the
window that is the whole run, the one that opens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from reports.page.figures import TimeAxis, chart_layout
from reports.page.page import Figure, Key
from reports.page.records import Columns, Floats
from reports.page.style import colour
from scenarios.quantity import count

MAX_ROWS = 100  # drawn at once
MAX_TICKS = 12  # rows that all are named
MAX_KEPT = 20_000  # in the page
TICKS = 1 << 23  # of the run: the resolution of its times in the page
# Stretches of a request, in order: (label, whose colour). Preemptions are drawn over them.
STRETCHES = (
    ("Queue", "waiting"),
    ("Prefill", "prefill"),
    ("Decode", "decode"),
    ("Finished, held by its batch", "held"),
)
PREEMPTED = ("Preempted", "preempted")
Ints = npt.NDArray[np.int64]


def request_lanes(requests: Columns, preemptions: Columns, axis: TimeAxis) -> Figure | None:
    """The chart; None where no request was ever in a batch."""
    times_s = _stretches_s(requests, axis.end_s)
    answered = ~np.asarray(requests["rejected"], dtype=bool)
    there = np.flatnonzero(np.isfinite(times_s[1]) & answered)
    if not there.size or axis.end_s <= 0:
        return None
    there = there[np.argsort(times_s[0][there], kind="stable")]
    asked = there.size
    if asked > MAX_KEPT:
        there = there[np.linspace(0, asked - 1, MAX_KEPT).round().astype(np.intp)]
    tick_s = axis.end_s / TICKS
    lanes = _whole_numbers(times_s[:, there], tick_s)
    numbers = np.asarray(requests["request"])[there]
    away = _preempted(preemptions, numbers, axis.end_s, tick_s)
    kinds = [*STRETCHES[:3], *(STRETCHES[3:] if lanes[4].any() else ()), PREEMPTED]
    if not away:
        kinds.pop()
    held = bool(lanes[4].any())
    payload = {
        "tick": tick_s / axis.unit[1],
        "unit": axis.unit[0],
        "most": MAX_ROWS,
        "of": asked,
        "held": held,
        "windows": _windows(times_s[:, there], axis),
        "names": [label for label, _ in kinds],
        "columns": [_thrifty(column) for column in (np.diff(lanes[0], prepend=0), *lanes[1:4])]
        + ([_thrifty(lanes[4])] if held else []),
        "numbers": _thrifty(np.diff(numbers.astype(np.int64), prepend=-1)),
        "away": away,
    }
    layout = chart_layout(
        x=axis.layout(),
        y={"title": {"text": "Requests, by arrival"}, "showgrid": False, "zeroline": False},
        height_px=min(440, 80 + 26 * there.size),
        left_px=66,
    )
    layout |= {"barmode": "overlay", "bargap": 0.1, "hovermode": "closest"}
    data, ticks = lane_bars(payload, kinds)
    layout["yaxis"] |= ticks
    sampled = (
        f" The page keeps {count(MAX_KEPT)} of the {count(asked)} requests, evenly chosen."
        if asked > MAX_KEPT
        else ""
    )
    if not answered.all():
        sampled += f" The {count(int((~answered).sum()))} rejected ones are left out."
    return Figure(
        "request-lanes",
        "Requests over time",
        "Zoom into any window, here or in another chart over time: the requests alive in it are "
        f"drawn, up to {MAX_ROWS} of them, evenly chosen.{sampled}",
        data,
        layout,
        tuple(Key(label, thing, (at,)) for at, (label, thing) in enumerate(kinds)),
        group="time",
        lanes=payload,
    )


def _windows(times_s: npt.NDArray[np.float64], axis: TimeAxis) -> list[list[Any]]:
    """Windows to go to at once, as [name, from, to]: the whole run, and where most are unfinished.

    The latter is wide enough to see a few requests come and go.
    """
    arrival_s, end_s = times_s[0], times_s[4]
    begun, ended = np.sort(arrival_s), np.sort(end_s)
    unfinished = np.arange(1, begun.size + 1) - np.searchsorted(ended, begun, side="right")
    peak_s = float(begun[int(unfinished.argmax())])
    width_s = min(axis.end_s, 2 * float(np.median(end_s - arrival_s)))
    if width_s > 0.5 * axis.end_s:
        return []
    low_s = min(max(0.0, peak_s - 0.5 * width_s), axis.end_s - width_s)
    low, high = (float(f"{edge / axis.unit[1]:.6g}") for edge in (low_s, low_s + width_s))
    whole = float(f"{axis.end_s / axis.unit[1]:.6g}")
    return [["Where most are unfinished", low, high], ["Whole run", 0, whole]]


def _stretches_s(requests: Columns, end_s: float) -> npt.NDArray[np.float64]:
    """[5, requests]: arrival, in a batch, first token, last token, returned; NaN if never.

    What never came is cut at the run's end.
    """
    names = ("arrival_s", "scheduled_s", "first_token_s", "last_token_s", "finished_s")
    found = np.array(
        [
            np.asarray(requests[name if name in requests else "finished_s"], dtype=np.float64)
            for name in names
        ]
    )
    for after in (2, 3, 4):
        found[after] = np.where(np.isfinite(found[after]), found[after], end_s)
    return found


def _whole_numbers(times_s: npt.NDArray[np.float64], tick_s: float) -> Ints:
    """Arrivals and the lengths of the stretches after them, in ticks."""
    ticks = np.round(times_s / tick_s).astype(np.int64)
    return np.concatenate([ticks[:1], np.maximum(np.diff(ticks, axis=0), 0)])


def _thrifty(numbers: npt.NDArray[Any]) -> list[int]:
    return [int(number) for number in numbers.tolist()]


def _preempted(
    preemptions: Columns, numbers: npt.NDArray[Any], end_s: float, tick_s: float
) -> list[list[int]]:
    """[lane, out, back] in ticks, of the requests that are kept."""
    if not len(preemptions.get("request", ())):
        return []
    order = np.argsort(numbers, kind="stable")
    place = np.searchsorted(numbers[order], preemptions["request"])
    place = np.minimum(place, numbers.size - 1)
    kept = numbers[order][place] == preemptions["request"]
    back_s = np.where(
        np.isfinite(preemptions["resumed_s"]), preemptions["resumed_s"], end_s
    ).astype(np.float64)
    columns = [
        order[place],
        np.round(np.asarray(preemptions["preempted_s"]) / tick_s).astype(np.int64),
        np.round(back_s / tick_s).astype(np.int64),
    ]
    found: list[list[int]] = np.array(columns)[:, kept].T.tolist()
    return found


def lane_bars(
    payload: Mapping[str, Any], kinds: list[tuple[str, str]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Traces and y axis of the whole run, as the page's script draws them for a window."""
    columns = [np.asarray(column, dtype=np.int64) for column in payload["columns"]]
    columns[0] = np.cumsum(columns[0])
    numbers = np.cumsum(payload["numbers"]) - 1
    total, most = columns[0].size, int(payload["most"])
    shown = np.arange(total)
    if total > most:
        shown = np.floor((np.arange(most) + 0.5) * total / most).astype(np.intp)
    tick = float(payload["tick"])
    starts = np.cumsum(np.array(columns), axis=0)[:, shown] * tick
    lengths = np.array(columns)[:, shown] * tick
    unit = payload["unit"]
    data = [
        _bars(
            label, thing, starts[at], lengths[at + 1], np.arange(shown.size), numbers[shown], unit
        )
        for at, (label, thing) in enumerate(kind for kind in kinds if kind != PREEMPTED)
    ]
    if kinds[-1] == PREEMPTED:
        row_of = {lane: row for row, lane in enumerate(shown.tolist())}
        away = [one for one in payload["away"] if one[0] in row_of]
        out = np.array([one[1] for one in away], dtype=np.float64) * tick
        back = np.array([one[2] for one in away], dtype=np.float64) * tick
        rows = np.array([row_of[one[0]] for one in away], dtype=np.int64)
        of = numbers[[one[0] for one in away]] if away else rows
        data.append(_bars(*PREEMPTED, out, back - out, rows, of, unit))
    marks = np.arange(shown.size)
    if marks.size > MAX_TICKS:
        marks = np.linspace(0, shown.size - 1, 6).round().astype(np.intp)
    ticks = {
        "range": [shown.size - 0.4, -0.6],
        "tickmode": "array",
        "tickvals": marks.tolist(),
        "ticktext": [f"{number:,}" for number in numbers[shown][marks].tolist()],
    }
    return data, ticks


def _bars(
    label: str, thing: str, base: Floats, length: Floats, rows: Ints, of: Ints, unit: str
) -> dict[str, Any]:
    some = length > 0
    return {
        "type": "bar",
        "orientation": "h",
        "name": label,
        "base": [float(f"{value:.7g}") for value in base[some].tolist()],
        "x": [float(f"{value:.5g}") for value in length[some].tolist()],
        "y": rows[some].tolist(),
        "width": 0.88,
        "customdata": of[some].tolist(),
        "marker": {"color": colour(thing), "line": {"width": 0}},
        "hovertemplate": (
            f"request %{{customdata}}: {label.lower()} for %{{x:.4~g}} {unit}, "
            f"from %{{base:.5~g}} {unit}<extra></extra>"
        ),
    }
