"""Runs of real engines, this project's or others': read, replayed, compared.

May import: calibrate.engine.
"""
