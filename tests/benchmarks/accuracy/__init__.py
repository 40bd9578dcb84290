"""Forecasts held against measurements: `python -m tests.benchmarks.accuracy`."""
