"""Speculative decoding: draft some tokens cheaply, verify them all in one pass of the target."""

from sim.speculation.speculation import DraftShape, Speculation

__all__ = ["DraftShape", "Speculation"]
