"""The what-if page's table: limits and figures of the setting now, the one before, those pinned."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scenarios.forecast.verdict import NAMES
from scenarios.quantity import GAP, MISSING, count, figure_of, milliseconds, percent, plain

Snapshot = Mapping[str, Any]

_FOLD = 10  # from here on a change is a factor: nobody reads +3,707.6 %


# Label, place in the summary, how it is written, and whether more of it is better.
ROWS: tuple[tuple[str, str, Callable[[float | None], str], bool | None], ...] = (
    ("TTFT, median", "median_ttft_ms", milliseconds, False),
    ("TTFT, p99", "p99_ttft_ms", milliseconds, False),
    ("TPOT, median", "median_tpot_ms", milliseconds, False),
    ("TPOT, p99", "p99_tpot_ms", milliseconds, False),
    ("E2E, p99", "p99_e2el_ms", milliseconds, False),
    ("Output tokens/s", "output_throughput", plain, True),
    ("Requests/s within SLO", "request_goodput", plain, True),
    ("$ per million output tokens", "cost.usd_per_million_output_tokens", plain, False),
    ("$ an hour", "cost.usd_per_hour", plain, False),
    ("GPUs", "cost.gpus", count, None),
    ("J per output token, estimated", "energy.joules_per_output_token", plain, False),
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
    return {_at(judged["percentile"], one["metric"]): one for one in judged.get("limits") or ()}


def _at(percentile: float, metric: str) -> str:
    return f"{NAMES[metric]}, p{percentile:g}"


def rows(now: Snapshot, before: Snapshot | None, pins: Sequence[Snapshot] = ()) -> list[Row]:
    """What the table shows; ``now`` may be empty, where that setting has no forecast."""
    shown = [now, before or {}, *pins]
    limits = list(_limit_rows(shown))
    said = {row.label for row in limits}
    return [*limits, *(row for row in _figure_rows(shown) if row.label not in said)]


def _limit_rows(shown: Sequence[Snapshot]) -> Iterator[Row]:
    labels = dict.fromkeys(label for each in shown for label in each.get("limits", ()))
    for label in labels:
        ones = [each.get("limits", {}).get(label) for each in shown]
        now, before, *pins = (Cell(MISSING) if one is None else _limit(one) for one in ones)
        value, old = (None if one is None else one["value_ms"] for one in ones[:2])
        yield Row(label, (now, before, _change(value, old, milliseconds, False), *pins))


def _limit(one: Mapping[str, Any]) -> Cell:
    text = f"{milliseconds(one['value_ms'])}, limit {milliseconds(one['limit_ms'])}"
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
    if not old:
        text = f"{show(value - old)} more"
    elif value / old >= _FOLD:
        text = f"{plain(value / old)}{GAP}times"
    else:
        text = f"{(value / old - 1) * 100:+.1f}{GAP}%"
    tone = "" if more_is_better is None else "good" if (value > old) == more_is_better else "bad"
    return Cell(text.replace("-", "−"), tone)
