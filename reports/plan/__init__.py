"""The page, folder and table of a plan.

May import: reports.run.
"""
