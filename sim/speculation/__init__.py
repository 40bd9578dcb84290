"""Speculative decoding: draft some tokens cheaply, verify them all in one pass of the target.

May import: sim.latency, sim.kv.
"""

from sim.speculation.speculation import HEADS, DraftShape, Speculation

__all__ = ["HEADS", "DraftShape", "Speculation"]
