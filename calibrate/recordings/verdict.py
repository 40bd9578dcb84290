"""Does a forecast hold against the engine's run of it? One sentence, and what speaks against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HOLDS_PCT = 5.0  # mean latencies and throughput within this
DRIFT = 0.05  # of a device's speed, which repeats differ by anyway
CONTENTION = 1.1  # time by the clock over the processor's own, before and after the run
FIGURES = (  # where a comparison keeps it, and what it is called
    (("metrics", "ttft", "mean"), "mean TTFT"),
    (("metrics", "tpot", "mean"), "mean TPOT"),
    (("metrics", "e2e", "mean"), "mean E2E"),
    (("throughput", "output"), "output throughput"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """holds: None where the run cannot tell. reasons: sentences, the device's state first."""

    holds: bool | None
    words: str
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"holds": self.holds, "words": self.words, "reasons": list(self.reasons)}


def verdict(figures: Mapping[str, Any], *, doubts: tuple[str, ...] = ()) -> Verdict:
    """Judge what `orcast validate --json` says of both runs.

    `doubts` are those of the latency table. A device that was not what it was when the table was
    measured, or that others used, leaves a difference open: it may be the device's.
    """
    doubts = tuple(f"The latency table doubts itself: {doubt}" for doubt in doubts)
    differences = list(_differences(figures))
    state = tuple(device_state(figures))
    off = [(name, pct) for name, pct in differences if abs(pct) > HOLDS_PCT]
    schedule = figures["schedule_identity"]
    if schedule["differences"]:
        return Verdict(
            False,
            "The forecast does not hold: from the engine's own durations the simulator makes "
            "another schedule.",
            state,
        )
    if figures["request_errors"] or not differences:
        return Verdict(
            None, "Nothing can be said: requests got no whole answer.", (*state, *doubts)
        )
    name, worst = max(differences, key=lambda found: abs(found[1]))
    if not off:
        within = f"every mean latency and the throughput are within {HOLDS_PCT:.0f} %"
        return Verdict(
            True, f"The forecast holds: {within} (worst: {name}, {worst:+.1f} %).", state
        )
    told = ", ".join(f"{name} {pct:+.1f} %" for name, pct in off)
    if state:
        return Verdict(
            None,
            f"Nothing can be said: {told}, on a device that was not as the table knows it. "
            "Repeat it on a quiet one, or measure the table anew.",
            (*state, *doubts),
        )
    return Verdict(False, f"The forecast does not hold: {told}.", (*_why(figures), *doubts))


def device_state(figures: Mapping[str, Any]) -> Iterator[str]:
    """A sentence each where the device is not what it was, and where others used it."""
    slowdown = figures.get("slowdown")
    if isinstance(slowdown, float) and abs(slowdown - 1.0) >= DRIFT:
        word = "slower" if slowdown > 1.0 else "faster"
        yield (
            f"The device was {abs(slowdown - 1.0):.0%} {word} around the run than when the table "
            "was measured (a fixed piece of work, timed at both times): that much of the "
            "difference is not the forecast's"
        )
    contention = figures.get("contention")
    if isinstance(contention, float) and contention > CONTENTION:
        yield (
            f"The processor was shared: around the run work took {contention:.2f} times as long "
            "by the clock as it had of the processor"
        )


def _differences(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for path, name in FIGURES:
        found: Any = figures
        for key in path:
            found = found.get(key) or {}
        if (pct := found.get("diff_pct")) is not None:
            yield name, float(pct)


def _why(figures: Mapping[str, Any]) -> Iterator[str]:
    """Where the difference lies, as far as iterations tell."""
    bias = figures["iterations"]["bias_pct"]
    if bias is None:
        return
    if abs(bias) > HOLDS_PCT:
        yield f"The table's times add up to {bias:+.1f} % of the iterations that were run"
    else:
        yield (
            f"The table's times add up to {bias:+.1f} %: what differs is which batches were made, "
            "or how requests arrived"
        )
