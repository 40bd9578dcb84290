"""A forecast beside a measurement or another forecast.

May import: reports.export.
"""
