"""How good a table is, and how well the engine was forecast.

May import: reports.compare.
"""
