"""Runs of one kind side by side, in words: what differs between them, and what comes of it.

Changes read forwards, from the first run to each next one. No run is the measure of the others,
but where one was measured: then the best is the closest to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.compare.figures import LOOKS
from reports.compare.headline import STATISTICS, changed, share, signed
from scenarios.quantity import GAP, MISSING, count, milliseconds, money, percent, plain, seconds

Beside = Mapping[str, Any]  # what `orcast compare --json` prints of runs of one kind
LONGEST_VALUE = 40  # of a setting in a sentence, in letters
MOST_SETTINGS = 3  # in a sentence


@dataclass(frozen=True, slots=True)
class Line:
    """A figure of every run as texts: `changes` from the base, `best` the runs where it is best."""

    label: str
    values: list[str]
    changes: list[str]
    best: list[int]


def latency_lines(beside: Beside, metric: str) -> list[Line]:
    """Mean and percentiles of a latency."""
    statistics = beside["metrics"][metric]
    return [
        Line(
            f"{STATISTICS[name]} {LOOKS[metric][0]}",
            [milliseconds(value) for value in figure["values"]],
            _changes(beside, figure),
            figure["best"],
        )
        for name, figure in statistics.items()
    ]


def whole_lines(beside: Beside) -> list[Line]:
    """What becomes of the runs as a whole."""
    outcomes = beside.get("outcomes") or {}
    known: list[tuple[str, Callable[[float | None], str], Mapping[str, Any], str]] = [
        (label, show, outcomes[key], kind)
        for key, (label, show, kind) in OUTCOMES.items()
        if key in outcomes
    ]
    known.insert(0, ("Output tokens/s", plain, beside["throughput"]["output"], "rate"))
    known.append(("Requests/s", plain, beside["throughput"]["request"], "rate"))
    known.append(("Makespan", seconds, beside["makespan"], "rate"))
    return [
        Line(
            label, [show(v) for v in figure["values"]], _changes(beside, figure, kind),
            figure["best"],
        )
        for label, show, figure, kind in known
    ]  # fmt: skip


def request_lines(beside: Beside) -> list[Line]:
    """How far the same requests are apart, on average; nothing of different requests."""
    own = beside["per_request"]
    if own is None:
        return []
    if not beside["base_is_measured"]:
        values = [signed(value) for value in own["e2e_bias_pct"]]
        values[beside["base"]] = MISSING
        return [Line("Same request's E2E, mean", values, [""] * len(values), [])]
    base = beside["base"]
    lines = []
    for metric, (short, _, _) in LOOKS.items():
        errors = own[f"{metric}_mape_pct"]
        known = {at: e for at, e in enumerate(errors) if e is not None and at != base}
        least = min(known.values(), default=None)
        lines.append(
            Line(
                f"{short} error, a request",
                [MISSING if at == base else share(value) for at, value in enumerate(errors)],
                [""] * len(errors),
                [at for at, error in known.items() if error == least],
            )
        )
    return lines


def _changes(beside: Beside, figure: Mapping[str, Any], kind: str = "rate") -> list[str]:
    base = figure["values"][beside["base"]]
    return [
        "" if at == beside["base"] else _change(base, value, kind)
        for at, value in enumerate(figure["values"])
    ]


def _change(base: float | None, value: float | None, kind: str) -> str:
    if base is None or value is None:
        return ""
    if kind == "share":
        points = f"{(value - base) * 100:+,.1f}".removesuffix(".0").replace("-", "−")
        return f"{'0' if points in ('+0', '−0') else points}{GAP}points"
    if kind == "count" and (base == 0 or abs(value - base) < base):
        return "0" if value == base else f"{value - base:+,.0f}".replace("-", "−")
    return changed(base, value)


# Label, how a figure is written, and whether it is a rate, a share or a count.
OUTCOMES: dict[str, tuple[str, Callable[[float | None], str], str]] = {
    "request_goodput": ("Goodput (requests/s)", plain, "rate"),
    "slo_attainment": ("Requests within the SLO", percent, "share"),
    "usd_per_million_output_tokens": ("Per million output tokens", money, "rate"),
    "usd_per_hour": ("Cost an hour", money, "rate"),
    "preemptions": ("Preemptions", count, "count"),
    "kv_utilization": ("KV memory used", percent, "share"),
}


def settings_rows(beside: Beside) -> list[tuple[str, list[str]]]:
    """Settings that differ, each with its value in every run."""
    return [
        (path, [said(value) for value in values])
        for path, values in (beside.get("scenario") or {}).items()
    ]


def said(value: Any) -> str:
    """A setting's value as people write it."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        known = {key: inner for key, inner in value.items() if inner is not None}
        return ", ".join(f"{key} {said(inner)}" for key, inner in known.items())
    if isinstance(value, list | tuple):
        between = "; " if any(isinstance(one, Mapping | list) for one in value) else ", "
        return between.join(map(said, value)) or "none"
    return f"{value:,g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def shortened(value: Any) -> str:
    """A setting's value in a few letters."""
    text = said(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def title(beside: Beside) -> str:
    """The comparison in a heading."""
    names = beside["names"]
    won = _winners(beside)
    if beside["base_is_measured"]:
        closest = won.get("e2e", [])
        which = _and([names[at] for at in closest])
        return f"{which} {_is(closest)} closest to the measurement" if closest else "Forecasts held"
    if len(names) == 2:
        changes = [
            f"{label} {change}"
            for label, figure in _headlined(beside)
            if (change := changed(*figure["values"])) not in (MISSING, f"0{GAP}%")
        ]
        return f"From A to B: {', '.join(changes)}" if changes else "From A to B nothing changes"
    told: dict[tuple[int, ...], list[str]] = {}
    for key, words in (
        ("goodput", "the highest goodput"),
        ("output", "the most output tokens/s"),
        ("e2e", "the shortest mean E2E"),
        ("usd", "the cheapest output tokens"),
    ):
        if won.get(key):
            told.setdefault(tuple(won[key]), []).append(words)
    parts = [
        f"{_and([names[at] for at in best])} {'has' if len(best) == 1 else 'have'} {_and(words)}"
        for best, words in told.items()
    ]
    return f"{count(len(names))} runs: {'; '.join(parts)}" if parts else "No run is the better one"


def headline(beside: Beside) -> str:
    """The comparison in a few sentences: what differs, the SLO, and the figures that count."""
    return " ".join([*_differing(beside), *_kept(beside), *_figures(beside)])


def _headlined(beside: Beside) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The three figures that a meeting asks for."""
    outcomes = beside.get("outcomes") or {}
    goodput = outcomes.get("request_goodput")
    if goodput is not None and None not in goodput["values"]:
        yield "goodput", goodput
    else:
        yield "output tokens/s", beside["throughput"]["output"]
    yield "mean E2E", beside["metrics"]["e2e"]["mean"]
    price = outcomes.get("usd_per_million_output_tokens")
    if price is not None and None not in price["values"]:
        yield "a million output tokens", price


def _winners(beside: Beside) -> dict[str, list[int]]:
    keys = {
        "goodput": "goodput",
        "output tokens/s": "output",
        "mean E2E": "e2e",
        "a million output tokens": "usd",
    }
    return {keys[label]: figure["best"] for label, figure in _headlined(beside)}


def _differing(beside: Beside) -> Iterator[str]:
    changes = beside.get("scenario")
    if changes is None:
        return
    if not changes:
        yield "Not a single setting differs."
        return
    two = len(beside["names"]) == 2
    told = [
        f"{path} from {shortened(values[0])} to {shortened(values[1])}"
        if two
        else f"{path} ({'; '.join(shortened(value) for value in values)})"
        for path, values in list(changes.items())[:MOST_SETTINGS]
    ]
    more = len(changes) - len(told)
    if more:
        told.append(f"{more} more setting{'s' * (more > 1)}")
    yield f"{'Changed' if two else 'They differ in'}{':' * two} {_and(told)}."


def _kept(beside: Beside) -> Iterator[str]:
    """Who keeps the service levels of its scenario."""
    met = [name for name, kept in zip(beside["names"], beside["slo_met"], strict=False) if kept]
    missed = [
        name for name, kept in zip(beside["names"], beside["slo_met"], strict=False)
        if kept is False
    ]  # fmt: skip
    parts = [f"{_and(met)} {_s('meet', met)} the SLO"] if met else []
    parts += [f"{_and(missed)} {_s('miss', missed)} {'it' if met else 'the SLO'}"] if missed else []
    if parts:
        yield f"{', '.join(parts)}."


def _figures(beside: Beside) -> Iterator[str]:
    names = beside["names"]
    if beside["base_is_measured"]:
        own = beside["per_request"]
        if own is not None:
            each = [
                f"{name} {share(own['e2e_mape_pct'][at])}"
                for at, name in enumerate(names)
                if at != beside["base"]
            ]
            yield f"A request's E2E is off, on average: {', '.join(each)}."
        return
    for label, figure in _headlined(beside):
        texts = _texts(label, figure["values"])
        if len(names) == 2:
            change = changed(*figure["values"])
            yield f"{label[0].upper()}{label[1:]}: {texts[0]} → {texts[1]} ({change})."
        else:
            each = [f"{name} {text}" for name, text in zip(names, texts, strict=True)]
            yield f"{label[0].upper()}{label[1:]}: {', '.join(each)}."


def _texts(label: str, values: Sequence[float | None]) -> list[str]:
    if label == "mean E2E":
        return [milliseconds(value) for value in values]
    show = money if label == "a million output tokens" else plain
    unit = " requests/s" if label == "goodput" else ""
    return [f"{show(value)}{unit}" for value in values]


def _and(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " * (len(words) > 1) + (words[-1] if words else "")


def _is(which: Sequence[int]) -> str:
    return "is" if len(which) == 1 else "are"


def _s(verb: str, who: Sequence[str]) -> str:
    ending = "es" if verb.endswith("s") else "s"
    return verb + ending if len(who) == 1 else verb
