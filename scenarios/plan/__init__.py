"""The cheapest deployment that serves a load within its SLO.

May import: scenarios.sweep.
"""
