"""A description of a trace, on the terminal and as a page.

May import: reports.run.
"""
