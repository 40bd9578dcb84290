"""The page, folder and table of a sweep.

May import: reports.run.
"""
