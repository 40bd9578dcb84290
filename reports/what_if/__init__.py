"""The local page that answers while one turns the knobs.

May import: reports.run.
"""
