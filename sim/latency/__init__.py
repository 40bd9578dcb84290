"""Latency of one iteration: sources that share one protocol.

May import: sim.model.
"""
