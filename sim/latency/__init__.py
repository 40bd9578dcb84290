"""Latency of one iteration: sources that share one protocol."""
