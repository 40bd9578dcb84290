"""A model's kernels, timed point by point into a latency table.

May import: calibrate.engine, calibrate.tables.
"""
