"""The report of one run, its folder, its table on the terminal.

May import: reports.page.
"""
