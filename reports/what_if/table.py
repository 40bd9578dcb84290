"""The what-if page's table: limits and figures of the setting now, the one before, those pinned."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scenarios.forecast.verdict import NAMES
from scenarios.quantity import GAP, MISSING, count, figure_of, milliseconds, percent, plain

Snapshot = Mapping[str, Any]


def _dollars(value: float | None) -> str:
    return MISSING if value is None else f"${plain(value)}"


def _joules(value: float | None) -> str:
    return MISSING if value is None else f"{plain(value)}{GAP}J"


# Label, place in the summary, how it is written, and whether more of it is better.
ROWS: tuple[tuple[str, str, Callable[[float | None], str], bool | None], ...] = (
    ("TTFT, median", "median_ttft_ms", milliseconds, False),
    ("TTFT, p99", "p99_ttft_ms", milliseconds, False),
    ("TPOT, median", "median_tpot_ms", milliseconds, False),
    ("TPOT, p99", "p99_tpot_ms", milliseconds, False),
    ("E2E, p99", "p99_e2el_ms", milliseconds, False),
    ("Output tokens/s", "output_throughput", plain, True),
    ("Requests/s within SLO", "request_goodput", plain, True),
    ("Cost per million output tokens", "cost.usd_per_million_output_tokens", _dollars, False),
    ("Cost an hour", "cost.usd_per_hour", _dollars, False),
    ("GPUs", "cost.gpus", count, None),
    ("Energy per output token, estimated", "energy.joules_per_output_token", _joules, False),
    ("Mean batch", "mean_running", plain, None),
    ("KV memory used", "kv_utilization", percent, None),
    ("Preemptions", "preemptions", count, False),
    ("Rejected", "rejected", count, False),
)


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    tone: str = ""  # "good", "bad" or neither


@dataclass(frozen=True, slots=True)
class Row:
    """A figure now, before, its change, and in each pinned setting."""

    label: str
    cells: tuple[Cell, ...]


def figures_of(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of `ROWS`, by their place in the summary."""
    found = {}
    for _, place, _, _ in ROWS:
        section, _, key = place.rpartition(".")
        inside = summary.get(section) if section else summary
        found[place] = figure_of(inside, key) if isinstance(inside, Mapping) else None
    return found


def limits_of(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The service levels' limits and what became of each, by the name of their row."""
    judged = summary.get("verdict") or {}
    return {
        f"{NAMES[one['metric']]}, p{judged['percentile']:g}, of its limit": one
        for one in judged.get("limits") or ()
    }


def rows(now: Snapshot, before: Snapshot | None, pins: Sequence[Snapshot] = ()) -> list[Row]:
    """What the table shows; ``now`` may be empty, where that setting has no forecast."""
    shown = [now, before or {}, *pins]
    return [*_limit_rows(shown), *_figure_rows(shown)]


def _limit_rows(shown: Sequence[Snapshot]) -> Iterator[Row]:
    labels = dict.fromkeys(label for each in shown for label in each.get("limits", ()))
    for label in labels:
        now, before, *pins = (_limit(each.get("limits", {}).get(label)) for each in shown)
        yield Row(label, (now, before, Cell(""), *pins))


def _limit(one: Mapping[str, Any] | None) -> Cell:
    if one is None:
        return Cell(MISSING)
    text = f"{milliseconds(one['value_ms'])} of {milliseconds(one['limit_ms'])}"
    return Cell(text, "good" if one["met"] else "bad")


def _figure_rows(shown: Sequence[Snapshot]) -> Iterator[Row]:
    for label, place, show, more_is_better in ROWS:
        values = [each.get("figures", {}).get(place) for each in shown]
        if all(value is None for value in values):
            continue
        now, before, *pins = (Cell(show(value)) for value in values)
        yield Row(label, (now, before, _change(values[0], values[1], show, more_is_better), *pins))


def _change(
    value: float | None,
    old: float | None,
    show: Callable[[float | None], str],
    more_is_better: bool | None,
) -> Cell:
    if value is None or old is None or value == old:
        return Cell("")
    text = f"{(value / old - 1) * 100:+.1f}{GAP}%" if old else f"{show(value - old)} more"
    tone = "" if more_is_better is None else "good" if (value > old) == more_is_better else "bad"
    return Cell(text.replace("-", "−"), tone)
