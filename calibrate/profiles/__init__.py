"""Other people's kernel profiles, made into latency tables.

May import: calibrate.tables.
"""
