"""What an iteration's time rests on, in one word."""

from __future__ import annotations

from sim.latency.beside import BesideLatency
from sim.latency.block_moves import BlockMoves
from sim.latency.overlapped import OverlappedLatency
from sim.latency.protocol import FixedLatency, LatencyModel
from sim.latency.table import TableLatency
from sim.latency.table_data import BASES
from sim.speculation.latency import SpeculativeLatency


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
