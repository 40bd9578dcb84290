"""The page of a forecast that is being served: charts that move, and limits to change.

May import: reports.page.
"""
