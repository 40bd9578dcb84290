"""The page, folder and table of a sizing.

May import: reports.run.
"""
