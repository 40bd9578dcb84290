"""Latency tables: what they say of themselves, how well they predict.

May import: nothing.
"""
