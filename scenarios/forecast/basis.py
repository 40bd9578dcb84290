"""What iterations' times rest on, in one word; and what is said of it, everywhere the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.latency.beside import BesideLatency
from sim.latency.block_moves import BlockMoves
from sim.latency.overlapped import OverlappedLatency
from sim.latency.protocol import FixedLatency, LatencyModel
from sim.latency.table import TableLatency
from sim.latency.table_data import BASES
from sim.speculation.latency import SpeculativeLatency

SAID = {
    "measured": "measured",
    "estimated": "estimated from measurements of other shapes or engines",
    "analytic": "analytic, not measured",
    "given": "given",
}
# What to trust where times are less than measured.
SETTINGS = "the differences between settings more than the absolute times"
CANDIDATES = "the order of candidates more than the absolute figures"


def basis(latency: LatencyModel) -> str:
    """measured, estimated (from measurements of something else), analytic, or given."""
    if isinstance(latency, BesideLatency | BlockMoves | OverlappedLatency):
        return basis(latency.inner)
    if isinstance(latency, SpeculativeLatency):
        drafting = "measured" if latency.drafting.measured else "analytic"
        return max(basis(latency.target), drafting, key=(*BASES, "given").index)
    if isinstance(latency, TableLatency):
        return latency.table.basis
    if isinstance(latency, FixedLatency):
        return "given"
    return "measured" if latency.measured else "analytic"


def kind_of(latency: Mapping[str, Any]) -> str | None:
    """The basis that a summary's `latency` names; None where it does not say."""
    kind = latency.get("basis") or ("measured" if latency.get("measured") else None)
    return str(kind) if kind else None


def times_are(kind: str | None, of: str = "") -> str:
    """``Iteration times of A are analytic, not measured``, for `of` " of A"."""
    return f"Iteration times{of} are {SAID.get(str(kind), 'of unknown origin')}"


def caution(kind: str | None, *, of: str = "", trust: str = SETTINGS) -> str | None:
    """What to know of times that are less than measured; None of those that are, or were given."""
    return None if kind in ("measured", "given") else f"{times_are(kind, of)}: trust {trust}."


def cautions(kinds: Sequence[tuple[str, str | None]], *, trust: str = SETTINGS) -> list[str]:
    """The same of several things by name, in one sentence for each kind of times."""
    found = []
    for kind in dict.fromkeys(kind for _, kind in kinds):
        names = [name for name, one in kinds if one == kind]
        listed = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
        text = caution(kind, of="" if len(names) == len(kinds) else f" of {listed}", trust=trust)
        found += [] if text is None else [text]
    return found
